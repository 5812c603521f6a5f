//! `rag-gym`: the command line, one host of the `studio` crate. Documented in docs/guide.md.

mod arguments;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;
use studio::{Cancel, StudioError};

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    let cancel = Cancel::default();
    let flag = cancel.clone();
    if arguments.command.heeds_cancel() {
        // A second Ctrl-C ends the process at once: every step so far is stored already.
        let handler = ctrlc::set_handler(move || {
            if flag.is_cancelled() {
                std::process::exit(130);
            }
            flag.cancel();
        });
        if let Err(error) = handler {
            output::note(&format!("Ctrl-C will end the process without a word: {error}"));
        }
    }
    match commands::execute(arguments, &cancel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            let cancelled = matches!(error.downcast_ref::<StudioError>(), Some(StudioError::Cancelled));
            ExitCode::from(if cancelled { 130 } else { 1 })
        }
    }
}
