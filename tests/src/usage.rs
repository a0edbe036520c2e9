//! What a process uses, as proc(5) tells.

use std::fs;

use anyhow::{Context, Result};
use rustix::param::clock_ticks_per_second;

/// Memory in megabytes (10^6 bytes).
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident now.
    pub resident: f64,
    /// The most that was ever resident.
    pub peak: f64,
}

/// What process `pid` holds.
///
/// # Errors
/// When it does not exist.
pub fn memory(pid: i32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes =
            line.and_then(|line| line.trim().strip_suffix("kB")).with_context(|| name.to_owned())?;
        Ok(kibibytes.trim().parse::<f64>()? * 1024.0 / 1e6)
    };
    Ok(Memory { resident: field("VmRSS")?, peak: field("VmHWM")? })
}

/// The seconds of processor time that process `pid` has used, in user and kernel mode; counted in
/// hundredths.
///
/// # Errors
/// When it does not exist.
pub fn processor_seconds(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field may itself hold spaces and parentheses; after it comes field 3.
    let (_, rest) = stat.rsplit_once(')').context("unexpected format of /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |number: usize| -> Result<f64> {
        Ok(fields.get(number - 3).context("a short /proc/PID/stat")?.parse()?)
    };
    #[expect(clippy::cast_precision_loss, reason = "it is 100")]
    let per_second = clock_ticks_per_second() as f64;
    Ok((ticks(14)? + ticks(15)?) / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_processor_time_and_memory() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = processor_seconds(own).unwrap();
        let mut block = Vec::new();
        while processor_seconds(own).unwrap() < before + 0.05 {
            block = std::hint::black_box(vec![1_u8; 20_000_000]);
        }
        let Memory { resident, peak } = memory(own).unwrap();
        assert!(resident >= 20.0 && peak >= resident, "{resident} of {peak} with {}", block.len());
    }
}
