//! What handlers noted, and chance that can be repeated.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use mayfly_tests::ids::Ids;

/// What handlers noted, in order.
#[derive(Debug, Default)]
pub(super) struct Notes(pub(super) Vec<Note>);

/// That a handler began or finished a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) id: String,
    pub(super) redelivered: bool,
    pub(super) attempt: u32,
}

/// A repeatable random sequence (splitmix64).
pub(super) struct Dice(pub(super) u64);

// === impl Notes ===

impl Notes {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let note = |line: &str| {
            let mut words = line.split(' ');
            let mut next = || words.next().with_context(|| format!("a note {line:?}"));
            Ok(Note { id: next()?.to_owned(), redelivered: next()? == "1", attempt: next()?.parse()? })
        };
        text.lines().map(note).collect::<Result<_>>().map(Self)
    }

    pub(super) fn ids(&self) -> Ids {
        self.0.iter().map(|note| note.id.clone()).collect()
    }

    /// How many are not the first of their message.
    pub(super) fn repeats(&self) -> usize {
        self.0.len() - self.ids().len()
    }

    pub(super) fn redelivered(&self) -> usize {
        self.0.iter().filter(|note| note.redelivered).count()
    }

    pub(super) fn of(&self, id: &str) -> Vec<&Note> {
        self.0.iter().filter(|note| note.id == id).collect()
    }

    pub(super) fn count(&self) -> BTreeMap<&str, usize> {
        let mut count = BTreeMap::new();
        for note in &self.0 {
            *count.entry(note.id.as_str()).or_default() += 1;
        }
        count
    }
}

// === impl Dice ===

impl Dice {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or(0)
    }

    /// A moment shorter than `limit`, for faults at random instants.
    pub(super) fn moment(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.next() % u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1))
    }
}
