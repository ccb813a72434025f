//! Standard output: what a client without a target delivers to.

use std::fmt::Write as _;

use async_trait::async_trait;
use gitstafette_core::event::Event;
use gitstafette_core::target::{Attempt, Target, Verdict};
use gitstafette_core::text::is_steering;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

/// Prints each event: a line of facts, its headers, its body. Control characters are shown, not sent to the terminal.
#[derive(Debug)]
pub struct PrintTarget {
    stdout: Mutex<tokio::io::Stdout>,
}

impl PrintTarget {
    /// A target that prints to standard output.
    pub fn new() -> Self {
        Self { stdout: Mutex::new(tokio::io::stdout()) }
    }
}

impl Default for PrintTarget {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Target for PrintTarget {
    fn name(&self) -> &str {
        "print"
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let text = render(event);
        let mut stdout = self.stdout.lock().await;
        let written = async {
            stdout.write_all(text.as_bytes()).await?;
            stdout.flush().await
        };
        match written.await {
            Ok(()) => Attempt { verdict: Verdict::Delivered, code: None, detail: "printed".into() },
            Err(error) => Attempt { verdict: Verdict::Retry(None), code: None, detail: error.to_string() },
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

    #[test]
    fn shows_everything_and_steers_nothing() {
        let mut webhook = testing::webhook(1, "octo/hello", 0);
        webhook.body = "{\"a\":\"\u{1b}[2J\"}".into();
        let text = render(&Event {
            sequence: Sequence::new(7),
            redelivery: false,
            address: Address::default(),
            webhook,
        });
        assert!(
            text.starts_with("── push octo/hello · delivery delivery-1 · sequence 7 · 12 bytes\n"),
            "{text}"
        );
        assert!(text.contains("\nx-repeated: one\n"), "{text}");
        assert!(text.ends_with("\n\n{\"a\":\"\\u{1b}[2J\"}\n\n"), "{text}");
    }
}
