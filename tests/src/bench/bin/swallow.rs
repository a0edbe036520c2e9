//! `bench-swallow`: the least that a command per message can do: reads its input and ends with 0.

use std::io;

fn main() -> io::Result<()> {
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map(drop)
}
