//! One process at a time works on a run: it holds an advisory lock on a file of the run, which ends with the
//! process however that ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::PathBuf;

use crate::{Result, Studio, StudioError};

/// The right to work on a run, given back when dropped.
pub(crate) struct Claim {
    path: PathBuf,
    _file: File,
}

impl Studio {
    /// Refused while another process holds it.
    pub(crate) fn claim(&self, run: &str) -> Result<Claim> {
        let folder = self.home().join("locks");
        let path = folder.join(run);
        let failed = |source| StudioError::File {
            action: "lock",
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Some systems let nobody read a locked file.
                let _ = file.read_to_string(&mut holder);
                return Err(StudioError::busy_elsewhere(run, holder.trim()));
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        write!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Claim { path, _file: file })
    }
}

impl Claim {
    /// Takes the file away too, with the run that it is of.
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
        drop(claim);
        studio.claim("r").unwrap();
    }
}
