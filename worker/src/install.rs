//! `mayfly-worker install DIR`: puts this program into a directory that it shares with an image that lacks it.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use mayfly_service::{ExitCode, chain};

/// The name that it gets.
const NAME: &str = "mayfly-worker";
/// Everybody may run it: whoever installs it and whoever runs it are different users in general.
const MODE: u32 = 0o755;

#[derive(Debug, thiserror::Error)]
enum CannotInstall {
    #[error("this program's own file cannot be read")]
    Own(#[source] io::Error),
    #[error("directory {0:?} does not exist: mount a volume there")]
    Absent(PathBuf),
    #[error(
        "{0:?} cannot be written: give this user a volume that it may write to, with room for the program"
    )]
    Write(PathBuf, #[source] io::Error),
}

/// Installs and says what it did, by its log and by exit code.
pub(crate) fn install(directory: &Path) -> ExitCode {
    let own = std::env::current_exe().map_err(CannotInstall::Own);
    match own.and_then(|own| copy(&own, directory)) {
        Ok((path, bytes)) => {
            tracing::info!(path = %path.display(), bytes, "installed mayfly-worker {}", env!("CARGO_PKG_VERSION"));
            ExitCode::Ok
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot install");
            ExitCode::Config
        }
    }
}

/// Whoever looks sees the old file or the new one, whole: it appears by a rename.
fn copy(own: &Path, directory: &Path) -> Result<(PathBuf, u64), CannotInstall> {
    if !directory.is_dir() {
        return Err(CannotInstall::Absent(directory.to_owned()));
    }
    let mut source = fs::File::open(own).map_err(CannotInstall::Own)?;
    let path = directory.join(NAME);
    // In a container every program has the same process id, but then it has the directory for itself.
    let new = directory.join(format!(".{NAME}.{}", std::process::id()));
    let written = write(&mut source, &new).and_then(|bytes| fs::rename(&new, &path).map(|()| bytes));
    written.map(|bytes| (path.clone(), bytes)).map_err(|error| {
        // Nothing can be done when even this fails.
        let _ = fs::remove_file(&new);
        CannotInstall::Write(path, error)
    })
}

fn write(source: &mut fs::File, new: &Path) -> io::Result<u64> {
    // One that died here left a part of it.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(MODE).open(new)?;
    let bytes = io::copy(source, &mut file)?;
    // Whatever the mask said.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_whole_executable_and_alone() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own");
        fs::write(&own, "program").unwrap();
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        // Twice, as after a restart of the init container; with what an interrupted one left.
        for text in ["program", "other program"] {
            fs::write(&own, text).unwrap();
            fs::write(target.join(format!(".{NAME}.{}", std::process::id())), "par").unwrap();
            let (path, bytes) = copy(&own, &target).unwrap();
            assert_eq!(path, target.join("mayfly-worker"));
            assert_eq!(usize::try_from(bytes).unwrap(), text.len());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        }
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_named_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("own");
        fs::write(&own, "program").unwrap();
        let absent = copy(&own, &directory.path().join("absent")).unwrap_err();
        assert!(chain(&absent).contains("absent\" does not exist: mount a volume there"), "{absent}");
        // A directory where the program should go: root, too, fails to rename over it.
        let target = directory.path().join("target");
        fs::create_dir_all(target.join("mayfly-worker/full")).unwrap();
        let failed = copy(&own, &target).unwrap_err();
        assert!(chain(&failed).contains("target/mayfly-worker\" cannot be written"), "{failed}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }
}
