//! The desktop shell: opens the studio, lends its use cases to the page, and nothing else.

mod asking;
mod commands;
mod teaching;

use studio::Studio;
use tauri::Manager;

/// Commands of the page, with their types.
fn bindings() -> tauri_specta::Builder<tauri::Wry> {
    use commands::*;
    use teaching::*;
    tauri_specta::Builder::new()
        .commands(tauri_specta::collect_commands![
            overview,
            set_up,
            ask,
            stop_task,
            start_run,
            resume_run,
            cancel_run,
            compare,
            export_run,
            remove_run,
            jobs,
            runs,
            run_view,
            episodes,
            episode,
            import_corpus,
            import_questions,
            preview,
            remove_corpus,
            remove_question_set,
            questions,
            search,
            explain,
            add_model,
            add_endpoint,
            remove_model,
            doctor,
            machine,
            start_training,
            resume_training,
            pause_training,
            keep_training,
            remove_training,
            trainings,
            training,
            training_steps,
            verdicts,
            annotate,
            agreement,
            human_states,
            human_state,
            judge_by_hand,
            unjudge,
        ])
        // One type a value, whichever way it crosses.
        .disable_serde_phases()
        .error_handling(tauri_specta::ErrorHandlingMode::Throw)
}

/// Opens the window and stays until it is closed.
pub fn run() {
    let bindings = bindings();
    let outcome = tauri::Builder::default()
        .plugin(tauri_plugin_dialog::init())
        .invoke_handler(bindings.invoke_handler())
        .manage(asking::Tasks::default())
        .setup(move |app| {
            bindings.mount_events(app);
            app.manage(Studio::open(None)?);
            Ok(())
        })
        .run(tauri::generate_context!());
    if let Err(error) = outcome {
        eprintln!("RAG-Gym Studio cannot start: {error}");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bindings_are_written() {
        super::bindings()
            .export(
                specta_typescript::Typescript::default()
                    .header("// Written by `cargo test -p rag-gym-studio --lib`; do not edit."),
                concat!(env!("CARGO_MANIFEST_DIR"), "/ui/src/ipc/bindings.ts"),
            )
            .unwrap();
    }
}
