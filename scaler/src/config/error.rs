//! What can be wrong with a configuration; every text names the place.

use std::path::PathBuf;

/// The configuration cannot be used. The first mistake found is reported.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {path:?} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not YAML, or of the wrong shape at `path`.
    #[error("line {line}: {}{problem}", prefix(.path))]
    Malformed {
        /// Line in the file, from 1.
        line: u64,
        /// Path of the value; empty for the file as a whole.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that means nothing here.
    #[error("line {line}: {}unknown key {key:?}; {hint}", prefix(.path))]
    UnknownKey {
        /// Line in the file, from 1.
        line: u64,
        /// Path of the mapping that holds it; empty for the file as a whole.
        path: String,
        /// The key.
        key: String,
        /// The key that was probably meant, or all keys that are allowed.
        hint: String,
    },
    /// A key that must be there is not.
    #[error("{path}: is missing; {allowed}")]
    Missing {
        /// Its path.
        path: String,
        /// What it should hold.
        allowed: &'static str,
    },
    /// A value that is not allowed.
    #[error("{path}: {value:?} is not allowed; {allowed}")]
    Value {
        /// Its path, or the flag that gave it.
        path: String,
        /// The value as written.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Values that are allowed alone, but not together.
    #[error("{path}: {problem}")]
    Conflict {
        /// The path of one of them.
        path: String,
        /// What contradicts what.
        problem: String,
    },
    /// A flag (or its environment variable) that speaks of one pool, but the file has several.
    #[error("{flag} changes the only pool of a file, but this one has {pools}: set it in the file")]
    ManyPools {
        /// The flag.
        flag: &'static str,
        /// How many pools the file has.
        pools: usize,
    },
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

// === impl ConfigError ===

impl ConfigError {
    /// From a parser's error at `path`.
    pub(super) fn malformed(path: &str, error: &serde_saphyr::Error) -> Self {
        let line = error.location().map_or(1, |location| location.line());
        // The parser calls the file as a whole ".".
        let path = if matches!(path, "." | "?") { "" } else { path };
        if let serde_saphyr::Error::SerdeUnknownField { field, expected, .. } = error {
            // The path may or may not end in the key itself.
            let holder = path.strip_suffix(&**field).map_or(path, |holder| holder.trim_end_matches('.'));
            return Self::UnknownKey {
                line,
                path: holder.to_owned(),
                key: field.clone(),
                hint: hint(field, expected),
            };
        }
        // A key that is there twice has no path of its own.
        let path = path.trim_end_matches(".?");
        let problem = match error {
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("key {key:?} is there twice")
            }
            serde_saphyr::Error::Unexpected { expected: "sequence start", .. } => {
                "expected a list".to_owned()
            }
            serde_saphyr::Error::Unexpected { expected: "mapping start", .. } => {
                "expected a mapping".to_owned()
            }
            serde_saphyr::Error::Unexpected { expected: "string scalar", .. } => {
                "expected a single value".to_owned()
            }
            // The parser's own text repeats the place, and shows lines of the file.
            other => {
                let text = other.render_with_formatter(&serde_saphyr::UserMessageFormatter);
                let line = text.lines().next().unwrap_or_default();
                let line = line.split(" at line ").next().unwrap_or_default();
                line.trim_start_matches("error: ").to_owned()
            }
        };
        Self::Malformed { line, path: path.to_owned(), problem }
    }
}

/// The likely key, or all of them.
fn hint(key: &str, expected: &[&'static str]) -> String {
    expected
        .iter()
        .map(|candidate| (distance(key, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 5)
        .min()
        .map_or_else(
            || format!("allowed are {}", expected.join(", ")),
            |(_, candidate)| format!("did you mean {candidate:?}?"),
        )
}

/// Edits (insert, remove, replace a character) that turn `a` into `b`: Levenshtein's distance, row by row.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
