//! Files that somebody else writes, in place or by renaming, and when they are other ones.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

/// How often a file is looked at, at most.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What changes when a file does: modification time (s, ns), size, inode.
pub(super) type Stamp = (i64, i64, u64, u64);

pub(super) fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino()))
}
