//! `bench-echo`: a child for `mayfly-worker stdio` that is done with every message at once.

use std::io::{self, BufRead, Write};

use serde::Deserialize;

#[derive(Deserialize)]
struct Request {
    id: u64,
}

fn main() -> io::Result<()> {
    let mut answers = io::stdout().lock();
    writeln!(answers, r#"{{"ready":true}}"#)?;
    answers.flush()?;
    for line in io::stdin().lock().lines() {
        let Request { id } = serde_json::from_str(&line?)?;
        writeln!(answers, r#"{{"id":{id},"outcome":"done"}}"#)?;
    }
    Ok(())
}
