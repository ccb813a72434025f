//! Standard output: what a client without a target delivers to.

use std::fmt::Write as _;
use std::{fmt, io};

use async_trait::async_trait;
use gitstafette_core::event::Event;
use gitstafette_core::target::{Attempt, Target, Verdict};
use gitstafette_core::text::is_steering;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Prints each event: a line of facts, its headers, its body. Control characters are shown, not sent to the terminal.
pub struct PrintTarget {
    output: Mutex<Box<dyn AsyncWrite + Send + Unpin>>,
    closed: CancellationToken,
}

impl PrintTarget {
    /// A target that prints to standard output.
    pub fn new() -> Self {
        Self::to(tokio::io::stdout())
    }

    fn to(output: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { output: Mutex::new(Box::new(output)), closed: CancellationToken::new() }
    }

    /// Cancelled when nobody reads the output any more (`| head`): trying again does not help, and the program should end.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

impl Default for PrintTarget {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PrintTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrintTarget").finish_non_exhaustive()
    }
}

#[async_trait]
impl Target for PrintTarget {
    fn name(&self) -> &str {
        "print"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let text = render(event);
        let mut output = self.output.lock().await;
        let written = async {
            output.write_all(text.as_bytes()).await?;
            output.flush().await
        };
        match written.await {
            Ok(()) => Attempt { verdict: Verdict::Delivered, code: None, detail: "printed".into() },
            Err(error) => {
                if error.kind() == io::ErrorKind::BrokenPipe {
                    self.closed.cancel();
                }
                Attempt { verdict: Verdict::Retry(None), code: None, detail: error.to_string() }
            }
        }
    }
}

/// An event as people read it.
pub(crate) fn render(event: &Event) -> String {
    let facts = &event.webhook.facts;
    let mut text = format!(
        "── {} {} · delivery {} · sequence {} · {} bytes\n",
        facts.event_type,
        facts.repository_label(),
        facts.delivery_id,
        event.sequence,
        event.webhook.body.len()
    );
    for (name, value) in event.webhook.headers.iter() {
        push_visible(&mut text, name, LAYOUT);
        text.push_str(": ");
        push_visible(&mut text, &String::from_utf8_lossy(value), LAYOUT);
        text.push('\n');
    }
    text.push('\n');
    push_visible(&mut text, &String::from_utf8_lossy(&event.webhook.body), LAYOUT);
    text.push_str("\n\n");
    text
}

/// The control characters that lay text out, and do no harm where it has lines of its own.
pub(crate) const LAYOUT: &[char] = &['\n', '\t'];

/// Adds text with its control characters escaped, but for those that are kept: a webhook must not steer the terminal it
/// is shown on.
pub(crate) fn push_visible(text: &mut String, shown: &str, kept: &[char]) {
    for char in shown.chars() {
        if is_steering(char) && !kept.contains(&char) {
            // Writing to a string cannot fail.
            write!(text, "{}", char.escape_unicode()).unwrap_or_default();
        } else {
            text.push(char);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gitstafette_core::event::{Address, Sequence};
    use gitstafette_core::testing;

    fn event() -> Event {
        let mut webhook = testing::webhook(1, "octo/hello", 0);
        webhook.body = "{\"a\":\"\u{1b}[2J\"}".into();
        Event { sequence: Sequence::new(7), redelivery: false, address: Address::default(), webhook }
    }

    #[test]
    fn shows_everything_and_steers_nothing() {
        let text = render(&event());
        assert!(
            text.starts_with("── push octo/hello · delivery delivery-1 · sequence 7 · 12 bytes\n"),
            "{text}"
        );
        assert!(text.contains("\nx-repeated: one\n"), "{text}");
        assert!(text.ends_with("\n\n{\"a\":\"\\u{1b}[2J\"}\n\n"), "{text}");
    }

    #[tokio::test]
    async fn says_when_nobody_reads() {
        let (output, reader) = tokio::io::duplex(4096);
        let target = PrintTarget::to(output);
        assert_eq!(target.attempt(&event()).await.verdict, Verdict::Delivered);
        assert!(!target.closed().is_cancelled());
        drop(reader);
        assert_eq!(target.attempt(&event()).await.verdict, Verdict::Retry(None));
        assert!(target.closed().is_cancelled());
    }
}
