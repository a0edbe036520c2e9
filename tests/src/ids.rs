//! Accounting for messages by id, as sets.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

/// Message ids.
pub type Ids = BTreeSet<String>;

/// The most ids named in an error.
const SHOWN: usize = 5;

/// When an id of ours was made, in milliseconds since the Unix epoch.
///
/// # Errors
/// When it is none of ours (UUID version 7, RFC 9562).
pub fn made_ms(id: &str) -> Result<u64> {
    let made = uuid::Uuid::parse_str(id)?.get_timestamp().context("an id without a time")?;
    let (seconds, nanoseconds) = made.to_unix();
    Ok(seconds * 1000 + u64::from(nanoseconds) / 1_000_000)
}

/// Compares two sets of ids.
///
/// # Errors
/// When they differ: the text names up to five ids of either kind and says how many there are.
pub fn assert_same(left_name: &str, left: &Ids, right_name: &str, right: &Ids) -> Result<()> {
    let only = |one: &Ids, other: &Ids| -> String {
        let missing: Vec<_> = one.difference(other).collect();
        let shown: Vec<_> = missing.iter().take(SHOWN).map(|id| id.as_str()).collect();
        let more = if missing.len() > SHOWN { ", …" } else { "" };
        format!("{} ({}{more})", missing.len(), shown.join(", "))
    };
    if left != right {
        bail!(
            "{left_name} ({}) and {right_name} ({}) differ: only {left_name}: {}; only {right_name}: {}",
            left.len(),
            right.len(),
            only(left, right),
            only(right, left),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(list: &[&str]) -> Ids {
        list.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn the_difference_is_named_in_both_directions() {
        let error = assert_same("published", &ids(&["a", "b"]), "done", &ids(&["b", "c"])).unwrap_err();
        let expected = "published (2) and done (2) differ: only published: 1 (a); only done: 1 (c)";
        assert_eq!(error.to_string(), expected);
        assert!(assert_same("one", &ids(&["a"]), "other", &ids(&["a"])).is_ok());
    }
}
