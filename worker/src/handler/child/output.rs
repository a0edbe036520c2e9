//! A child's output as lines of bounded length.

use std::borrow::Cow;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Takes the lines of a source one by one.
#[derive(Debug)]
pub(in crate::handler) struct Lines<R> {
    source: BufReader<R>,
    line: Vec<u8>,
    /// Whether `line` was handed out.
    is_told: bool,
    limit: usize,
}

/// A line, or a piece of one that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::handler) struct Line<'a> {
    pub(in crate::handler) bytes: &'a [u8],
    /// Whether it ends here.
    pub(in crate::handler) is_whole: bool,
}

/// Longer lines of a log are told in pieces of this many bytes.
pub(in crate::handler) const LOG_LIMIT: usize = 4096;

// === impl Lines ===

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Longer lines than `limit` bytes come in pieces.
    pub(in crate::handler) fn new(source: R, limit: usize) -> Self {
        let source = BufReader::with_capacity(limit, source);
        Self { source, line: Vec::new(), is_told: false, limit }
    }

    /// The next line without its end; `None` when there are no more. Nothing is lost when this is dropped
    /// before it is ready.
    pub(in crate::handler) async fn next(&mut self) -> Option<Line<'_>> {
        if self.is_told {
            self.line.clear();
            self.is_told = false;
        }
        // A read error ends the output as its end does.
        while let Ok(chunk) = self.source.fill_buf().await
            && !chunk.is_empty()
        {
            let newline = chunk.iter().position(|&byte| byte == b'\n');
            let room = self.limit - self.line.len();
            let taken = newline.unwrap_or(chunk.len()).min(room);
            self.line.extend_from_slice(&chunk[..taken]);
            let is_whole = newline == Some(taken);
            self.source.consume(taken + usize::from(is_whole));
            if is_whole || self.line.len() == self.limit {
                self.is_told = true;
                return Some(Line { bytes: &self.line, is_whole });
            }
        }
        self.is_told = true;
        (!self.line.is_empty()).then_some(Line { bytes: &self.line, is_whole: true })
    }
}

// === impl Line ===

impl<'a> Line<'a> {
    /// As text; bytes that aren't UTF-8 are replaced.
    pub(in crate::handler) fn text(self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.bytes)
    }
}

/// Hands each line of `source` to `tell` until its end.
pub(in crate::handler) async fn lines(source: impl AsyncRead + Unpin, mut tell: impl FnMut(&str)) {
    let mut lines = Lines::new(source, LOG_LIMIT);
    while let Some(line) = lines.next().await {
        tell(&line.text());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(bytes: &[u8]) -> Vec<String> {
        let mut told = Vec::new();
        lines(bytes, |line| told.push(line.to_owned())).await;
        told
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_the_last_needs_no_end() {
        assert_eq!(told(b"one\n\ntwo").await, ["one", "", "two"]);
    }

    #[tokio::test]
    async fn a_line_without_end_is_told_in_bounded_pieces() {
        let told = told(&[b'x'; 3 * LOG_LIMIT + 1]).await;
        assert_eq!(told.iter().map(String::len).collect::<Vec<_>>(), [LOG_LIMIT, LOG_LIMIT, LOG_LIMIT, 1]);
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(told(b"a\xffb\n").await, ["a\u{fffd}b"]);
    }

    #[tokio::test]
    async fn the_end_of_a_line_that_is_too_long_can_be_seen() {
        let mut lines = Lines::new(&b"12345678\nab\n1234\n"[..], 4);
        let mut seen = Vec::new();
        while let Some(Line { bytes, is_whole }) = lines.next().await {
            seen.push((String::from_utf8_lossy(bytes).into_owned(), is_whole));
        }
        let expected =
            [("1234", false), ("5678", false), ("", true), ("ab", true), ("1234", false), ("", true)];
        assert_eq!(seen, expected.map(|(text, is_whole)| (text.to_owned(), is_whole)));
    }
}
