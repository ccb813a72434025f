//! How many files and connections a process may have open. Both programs raise their limit when they start: the usual soft
//! limit of 1024 is for programs that use select(2), and these do not.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::debug;

/// Raises the soft limit to the hard one. Where the system does not allow it, the limit stays.
pub fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        debug!(%error, "cannot raise the limit of open files");
    }
}

/// The soft limit; `None`: there is none.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}
