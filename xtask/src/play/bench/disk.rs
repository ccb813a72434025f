//! What the disk can do by itself.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::text;

const BLOCK: [u8; 4096] = [0x5a; 4096];
const TIME: Duration = Duration::from_secs(2);

/// How fast a block is appended to a file and made durable (fdatasync), one after another.
#[derive(Debug)]
pub(crate) struct FsyncRate {
    pub(crate) per_second: f64,
    pub(crate) median: Duration,
}

impl FsyncRate {
    pub(crate) async fn measure(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("blocks");
        tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::create(&path)?;
            let mut durations = Vec::new();
            let started = Instant::now();
            while started.elapsed() < TIME {
                let before = Instant::now();
                file.write_all(&BLOCK)?;
                file.sync_data()?;
                durations.push(before.elapsed());
            }
            let per_second = durations.len() as f64 / started.elapsed().as_secs_f64();
            std::fs::remove_file(&path)?;
            let median = text::quantile(&durations, 0.5).context("not one block in time")?;
            Ok(Self { per_second, median })
        })
        .await?
    }

    /// How long one takes.
    pub(crate) fn each(&self) -> String {
        format!("{} ms each, median", text::millis(self.median))
    }
}
