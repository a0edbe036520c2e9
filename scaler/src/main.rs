//! The `mayfly-scaler` program.

use clap::Parser;
use mayfly_scaler::cli::Cli;
use mayfly_service::{ExitCode, Shutdown};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let shutdown = match Shutdown::on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            eprintln!("error: cannot listen for signals: {error}");
            return ExitCode::Internal.into();
        }
    };
    mayfly_service::tls::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version are no errors and go to standard output.
            let code = if usage.use_stderr() { ExitCode::Usage } else { ExitCode::Ok };
            let _ = usage.print();
            return code.into();
        }
    };
    cli.run(shutdown)
        .await
        .unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::Internal
        })
        .into()
}
