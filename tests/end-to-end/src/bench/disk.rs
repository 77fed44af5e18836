//! What the disk costs without us.

use crate::figures::Samples;
use std::{fs::File, os::unix::fs::FileExt as _, path::Path, time::Instant};

const SYNCS: u64 = 100;

/// Overwrites a page of a file and waits for the disk, again and again.
pub(crate) fn sync_times(folder: &Path) -> anyhow::Result<Samples> {
    let path = folder.join(format!("sync-{}", std::process::id()));
    let file = File::create(&path)?;
    let page = [7_u8; 4096];
    let mut samples = Samples::default();
    for round in 0..2 {
        for n in 0..SYNCS {
            let started = Instant::now();
            file.write_all_at(&page, n * 4096)?;
            file.sync_data()?;
            // The first round makes the file long: that costs more than writing over it.
            if round == 1 {
                samples.add(started.elapsed());
            }
        }
    }
    std::fs::remove_file(path)?;
    Ok(samples)
}
