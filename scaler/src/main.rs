//! The `mayfly-scaler` program.

use clap::Parser;
use mayfly_scaler::cli::Cli;
use mayfly_service::{ExitCode, Shutdown};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
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
    let outcome = match Shutdown::on_signals() {
        Ok(shutdown) => cli.run(shutdown).await,
        Err(error) => Err(error.into()),
    };
    outcome
        .unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::Internal
        })
        .into()
}
