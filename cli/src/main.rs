//! `bulkhead`: what an administrator types. Everything is in the library, so that tests run it on an in-memory store.

use std::io;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // The store's log, for whoever asks by RUST_LOG; errors reach the user without it.
    let filter = EnvFilter::builder().with_default_directive(tracing_subscriber::filter::LevelFilter::OFF.into());
    tracing_subscriber::fmt().with_env_filter(filter.from_env_lossy()).with_writer(io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the program cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(bulkhead_cli::run(std::env::args_os(), None, &mut io::stdout(), &mut io::stderr()));
    ExitCode::from(code)
}
