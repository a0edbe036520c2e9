//! The exit codes of all mayfly programs (the sysexits convention of BSD).

/// Why a program ended, as its parent sees it.
///
/// `Ok` means "the work is done, or we were asked to stop" and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Idle, recycled, withdrawn, or asked to stop; for a command: all of it was done.
    Ok = 0,
    /// The command line or the configuration is wrong.
    Usage = 64,
    /// The broker (or another needed service) is unreachable or was lost.
    Unavailable = 69,
    /// A defect of ours, starvation, or an abort by a second signal.
    Internal = 70,
    /// Gave up waiting for something that may come back.
    TempFail = 75,
    /// Refused by configuration: a missing queue, no permission, a handler that cannot start.
    Config = 78,
}

// === impl ExitCode ===

impl ExitCode {
    /// The number that the operating system sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}
