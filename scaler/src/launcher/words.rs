//! The last words of a worker that left no report. Pure.

/// So many of its last lines are kept …
const LINES: usize = 10;
/// … in at most so many bytes: they stand in the state record.
pub(super) const BYTES: usize = 1024;

/// What is kept of a log, or of its end; `None` if it says nothing.
pub(super) fn last_of(log: &str) -> Option<String> {
    let is_shown = |c: char| if c.is_control() { ' ' } else { c };
    let lines: Vec<String> = log
        .lines()
        .map(|line| line.chars().map(is_shown).collect::<String>().trim_end().to_owned())
        .collect();
    let lines = lines.iter().rposition(|line| !line.is_empty()).map_or(&[][..], |last| &lines[..=last]);
    let text = lines[lines.len().saturating_sub(LINES)..].join("\n");
    let mut from = text.len().saturating_sub(BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    Some(text[from..].to_owned()).filter(|text| !text.is_empty())
}
