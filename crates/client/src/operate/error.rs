//! What an operator is told when a command does not succeed: one line that says what to change.

use std::fmt;
use std::io;

use gitstafette_proto::convert::WireError;
use tonic::{Code, Status};

use super::table::one_line;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum OperateError {
    /// It was called the wrong way.
    Usage(String),
    /// It cannot be done.
    Failed(String),
    /// The server refused, or cannot be reached.
    Server(Status),
    /// The output cannot be written.
    Output(io::Error),
}

impl OperateError {
    /// The program's exit code: 2 for wrong usage, as clap's; 0 if nobody wanted more of the output (`| head`); else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ if self.is_quiet() => 0,
            _ => 1,
        }
    }

    /// Whether there is nothing to be said: whoever read the output went away.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for OperateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Self::Usage(text) | Self::Failed(text) => text.clone(),
            Self::Server(status) => explain(status),
            Self::Output(error) => format!("standard output: {error}"),
        };
        // A server's message is text from outside.
        f.write_str(&one_line(&line))
    }
}

impl std::error::Error for OperateError {}

impl From<Status> for OperateError {
    fn from(status: Status) -> Self {
        Self::Server(status)
    }
}

impl From<io::Error> for OperateError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<WireError> for OperateError {
    fn from(error: WireError) -> Self {
        Self::Failed(format!(
            "the server's answer cannot be understood; is it newer than this client? {error}"
        ))
    }
}

fn explain(status: &Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match status.code() {
        Code::Unauthenticated => {
            format!("the server refuses: {message} (--token-file, GITSTAFETTE_TOKEN, --cert-file-location)")
        }
        Code::PermissionDenied => format!("the server refuses: {message} (--token-file, GITSTAFETTE_TOKEN)"),
        Code::Unimplemented => {
            format!(
                "there is no such call at that address: an older server, or not Gitstafette's gRPC port ({message})"
            )
        }
        Code::Unavailable | Code::NotFound | Code::InvalidArgument | Code::DeadlineExceeded => {
            message.to_owned()
        }
        code => format!("{code:?}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_that_cannot_steer_a_terminal() {
        let error = OperateError::from(Status::not_found("there is\nno\u{1b}[2J event"));
        assert_eq!(error.to_string(), "there is\\u{a}no\\u{1b}[2J event");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error() {
        let gone = OperateError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((gone.exit_code(), gone.is_quiet()), (0, true));
        let full = OperateError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!((full.exit_code(), full.is_quiet()), (1, false));
    }
}
