//! A child's output as log lines of bounded length.

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Longer lines are told in pieces of this many bytes.
const LINE_LIMIT: usize = 4096;

/// Hands each line of `source` to `tell` until its end; bytes that aren't UTF-8 are replaced.
pub(super) async fn lines(source: impl AsyncRead + Unpin, mut tell: impl FnMut(&str)) {
    let mut source = BufReader::with_capacity(LINE_LIMIT, source);
    let mut line = Vec::new();
    // A read error ends the output as its end does.
    while let Ok(chunk) = source.fill_buf().await
        && !chunk.is_empty()
    {
        let newline = chunk.iter().position(|&byte| byte == b'\n');
        let room = LINE_LIMIT - line.len();
        let taken = newline.unwrap_or(chunk.len()).min(room);
        line.extend_from_slice(&chunk[..taken]);
        let is_whole = newline == Some(taken);
        source.consume(taken + usize::from(is_whole));
        if is_whole || line.len() == LINE_LIMIT {
            tell(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    if !line.is_empty() {
        tell(&String::from_utf8_lossy(&line));
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
        let told = told(&[b'x'; 3 * LINE_LIMIT + 1]).await;
        assert_eq!(told.iter().map(String::len).collect::<Vec<_>>(), [LINE_LIMIT, LINE_LIMIT, LINE_LIMIT, 1]);
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(told(b"a\xffb\n").await, ["a\u{fffd}b"]);
    }
}
