//! One process at a time works on a run or a training: it holds an advisory lock on a file of that work, which
//! ends with the process however that ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::{Result, Studio, StudioError};

/// The right to work on something, given back when dropped.
pub(crate) struct Claim {
    path: PathBuf,
    _file: File,
}

impl Studio {
    /// Refused while another process works on the run.
    pub(crate) fn claim(&self, run: &str) -> Result<Claim> {
        Claim::take(&self.claim_file(run), run)
    }

    /// Whether a process works on the run, this one or another.
    pub(crate) fn is_claimed(&self, run: &str) -> bool {
        Claim::is_held(&self.claim_file(run))
    }

    fn claim_file(&self, run: &str) -> PathBuf {
        self.home().join("locks").join(run)
    }
}

impl Claim {
    /// Locks a file, whose folder it makes if need be. `name`: whose work the refusal tells of.
    pub fn take(path: &Path, name: &str) -> Result<Claim> {
        let failed = |source| StudioError::file("lock", path)(source);
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Some systems let nobody read a locked file.
                let _ = file.read_to_string(&mut holder);
                return Err(StudioError::busy_elsewhere(name, holder.trim()));
            }
            // Where a file system has no locks, the user takes care.
            Err(TryLockError::Error(source)) if source.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        write!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Claim {
            path: path.into(),
            _file: file,
        })
    }

    /// Whether somebody holds this file's claim.
    pub fn is_held(path: &Path) -> bool {
        File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Takes the file away too, with the work that it is of.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_claimed_once_and_the_refusal_names_the_holder() {
        let home = tempfile::tempdir().unwrap();
        let studio = Studio::open(Some(home.path().into())).unwrap();
        let claim = studio.claim("r").unwrap();
        let Err(refused) = studio.claim("r") else {
            panic!("claimed twice")
        };
        assert_eq!(refused.code(), "busy");
        let message = refused.to_string();
        assert!(
            message.contains(&format!("process {}", std::process::id())),
            "{message}"
        );
        studio.claim("other").unwrap();
        assert!(Claim::is_held(&claim.path));
        let path = claim.path.clone();
        drop(claim);
        assert!(!Claim::is_held(&path));
        studio.claim("r").unwrap();
    }
}
