//! The workers' files and logs, as the process launcher leaves them.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::Result;
use serde_json::Value;

use crate::stage::{Ending, Look, Sighting, done_id};

/// The directory that they are in.
#[derive(Debug)]
pub(super) struct WorkerFiles {
    pub(super) directory: PathBuf,
    /// How much of each worker's log has been read.
    read: BTreeMap<String, u64>,
}

// === impl WorkerFiles ===

impl WorkerFiles {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, read: BTreeMap::new() }
    }

    /// Reads all files, and what is new in the logs.
    pub(super) fn look(&mut self) -> Result<Look> {
        let mut look = Look::default();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_some() {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let read = self.read.entry(name.clone()).or_default();
            let done = read_done(&path.with_extension("log"), read)?;
            look.done.extend(done.into_iter().map(|id| (name.clone(), id)));
            look.workers.insert(name, sighting(&text));
        }
        Ok(look)
    }
}

/// Makes sense of a worker's file: the header, then status lines.
fn sighting(text: &str) -> Sighting {
    let mut sighting = Sighting::default();
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        match line["event"].as_str() {
            None => {
                sighting.serial = line["serial"].as_u64().unwrap_or(0);
                sighting.slot = line["slot"].as_u64().unwrap_or(0);
                let stamp = line["stamp"].as_str().and_then(|stamp| humantime::parse_rfc3339(stamp).ok());
                let since = stamp.and_then(|stamp| stamp.duration_since(UNIX_EPOCH).ok());
                sighting.launched =
                    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
            }
            Some("exit") => {
                sighting.ending = line["at"].as_u64().map(|at| Ending {
                    at,
                    exit_code: line["exit_code"].as_u64(),
                    reason: line.pointer("/report/reason").and_then(Value::as_str).map(str::to_owned),
                    complete: None,
                    started: true,
                });
            }
            Some(_) => {}
        }
    }
    sighting
}

/// Reads on in a log, from `read`.
fn read_done(path: &Path, read: &mut u64) -> Result<Vec<String>> {
    let Ok(mut file) = fs::File::open(path) else { return Ok(Vec::new()) };
    file.seek(SeekFrom::Start(*read))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // A line that is still being written is left for the next look.
    let Some(end) = text.rfind('\n') else { return Ok(Vec::new()) };
    *read += end as u64 + 1;
    Ok(text[..end].lines().filter_map(done_id).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_workers_file_tells_its_launch_and_its_end() {
        let header = r#"{"serial":3,"slot":1,"stamp":"1970-01-01T00:00:01.500Z"}"#;
        let mut expected = Sighting { serial: 3, slot: 1, launched: 1500, ending: None };
        assert_eq!(sighting(header), expected);
        let lines = format!(
            "{header}\n{{\"event\":\"ready\",\"at\":1600}}\n\
             {{\"event\":\"exit\",\"at\":1700,\"exit_code\":0,\"report\":{{\"reason\":\"idle\"}}}}\n"
        );
        let reason = Some("idle".to_owned());
        expected.ending =
            Some(Ending { at: 1700, exit_code: Some(0), reason, complete: None, started: true });
        assert_eq!(sighting(&lines), expected);
    }

    #[test]
    fn a_log_is_read_on_from_where_it_ended_without_half_lines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let line = |id| format!(r#"{{"target":"mayfly_worker::message","outcome":"done","id":"{id}"}}"#);
        let mut read = 0;
        write!(file, "{}\n{}", line("a"), &line("b")[..20]).unwrap();
        assert_eq!(read_done(file.path(), &mut read).unwrap(), ["a"]);
        writeln!(file, "{}", &line("b")[20..]).unwrap();
        assert_eq!(read_done(file.path(), &mut read).unwrap(), ["b"]);
        assert!(read_done(file.path(), &mut read).unwrap().is_empty());
    }
}
