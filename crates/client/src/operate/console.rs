//! What a command prints to and reads from.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use gitstafette_core::text::is_steering;
use serde::Serialize;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

use super::OperateError;

/// Where answers, remarks and questions go: the standard streams, or what a test makes of them.
pub struct Console {
    /// What was asked for.
    pub output: Box<dyn Write + Send>,
    /// Whether the output is a terminal: raw bytes are not for one.
    pub is_terminal: bool,
    /// Remarks and questions to the operator.
    pub remarks: Box<dyn Write + Send>,
    /// The operator's answers; `None` if nobody can be asked.
    pub answers: Option<Box<dyn AsyncBufRead + Send + Unpin>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("is_terminal", &self.is_terminal).finish_non_exhaustive()
    }
}

impl Console {
    /// The standard streams. Nobody can be asked unless questions and answers both go over a terminal.
    pub fn standard() -> Self {
        let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
        Self {
            output: Box::new(io::BufWriter::new(io::stdout())),
            is_terminal: io::stdout().is_terminal(),
            remarks: Box::new(io::stderr()),
            answers: can_ask.then(|| Box::new(BufReader::new(tokio::io::stdin())) as _),
        }
    }

    /// Prints a value as one line of JSON. Characters that would steer a terminal are escaped, those too that JSON lets
    /// stand (RFC 8259 §7 asks for the first 32 only): they occur in strings alone.
    pub(super) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = String::new();
        for char in serde_json::to_string(value)?.chars() {
            if is_steering(char) {
                // A character beyond U+FFFF takes two escapes (RFC 8259 §7).
                for unit in char.encode_utf16(&mut [0; 2]) {
                    line.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                line.push(char);
            }
        }
        line.push('\n');
        self.output.write_all(line.as_bytes())
    }

    /// Sends what was printed on its way.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// Tells the operator something that is no part of the answer.
    pub(super) fn remark(&mut self, text: &str) {
        // Whoever closed it does not want to know.
        drop(writeln!(self.remarks, "{text}"));
    }

    /// Fails if nobody can be asked: a command that asks before it acts then needs `--yes`.
    pub(super) fn require_answers(&self) -> Result<(), OperateError> {
        match self.answers {
            Some(_) => Ok(()),
            None => {
                Err(OperateError::Usage("there is no terminal to ask for confirmation; give --yes".into()))
            }
        }
    }

    /// Asks a question that is answered with yes or no; what is not clearly yes is no.
    ///
    /// # Errors
    /// As [`require_answers`](Self::require_answers), or the answer cannot be read.
    pub(super) async fn confirms(&mut self, question: &str) -> Result<bool, OperateError> {
        self.require_answers()?;
        let Some(answers) = &mut self.answers else { return Ok(false) };
        drop(write!(self.remarks, "{question} [y/N] ").and_then(|()| self.remarks.flush()));
        let mut answer = String::new();
        let read = answers.read_line(&mut answer).await;
        read.map_err(|error| OperateError::Failed(format!("standard input: {error}; or give --yes")))?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}
