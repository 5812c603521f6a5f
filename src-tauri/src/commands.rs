//! One small function a command: each hands its request to the studio on a thread that may block.

use std::path::PathBuf;

use studio::compare::Comparison;
use studio::doctor::Check;
use studio::endpoint::{Route, Settings};
use studio::machine::MachineReport;
use studio::preview::PreviewView;
use studio::view::{
    AskEvent, AskRequest, EpisodeRow, EpisodeView, ErrorView, ImportView, JobView, ModelView, Overview, Progress,
    QuestionPage, RunRequest, RunView, SearchView, TermView,
};
use studio::{Cancel, Format, Studio, StudioError};
use tauri::State;
use tauri::ipc::Channel;

use crate::asking::{Batcher, Meter, Tasks};

pub(crate) type Reply<T> = Result<T, ErrorView>;

pub(crate) async fn on_thread<T: Send + 'static>(
    studio: &State<'_, Studio>,
    work: impl FnOnce(Studio) -> Result<T, StudioError> + Send + 'static,
) -> Reply<T> {
    let studio = studio.inner().clone();
    match tauri::async_runtime::spawn_blocking(move || work(studio)).await {
        Ok(outcome) => outcome.map_err(|error| error.view()),
        Err(error) => Err(ErrorView {
            code: "internal".to_owned(),
            message: format!("the work ended unexpectedly ({error}); please report it"),
        }),
    }
}

#[tauri::command]
#[specta::specta]
pub async fn overview(studio: State<'_, Studio>) -> Reply<Overview> {
    on_thread(&studio, |studio| studio.overview()).await
}

#[tauri::command]
#[specta::specta]
pub async fn set_up(
    studio: State<'_, Studio>,
    tasks: State<'_, Tasks>,
    key: String,
    progress: Channel<Progress>,
) -> Reply<()> {
    let cancel = tasks.begin(&key);
    let mut meter = Meter::new(progress);
    let done = on_thread(&studio, move |studio| studio.setup(&mut |p| meter.report(p), &cancel)).await;
    tasks.end(&key);
    done
}

/// Stops what was started under `key`: a question, an import or the set-up.
#[tauri::command]
#[specta::specta]
pub fn stop_task(tasks: State<'_, Tasks>, key: String) {
    tasks.stop(&key);
}

#[tauri::command]
#[specta::specta]
pub async fn ask(
    studio: State<'_, Studio>,
    tasks: State<'_, Tasks>,
    key: String,
    request: AskRequest,
    events: Channel<Vec<AskEvent>>,
) -> Reply<EpisodeView> {
    let cancel = tasks.begin(&key);
    let mut batcher = Batcher::new(events);
    let done = on_thread(&studio, move |studio| {
        let episode = studio.ask(&request, &cancel, &mut |event| batcher.push(event));
        batcher.flush();
        episode
    })
    .await;
    tasks.end(&key);
    done
}

#[tauri::command]
#[specta::specta]
pub async fn start_run(studio: State<'_, Studio>, request: RunRequest) -> Reply<String> {
    on_thread(&studio, move |studio| studio.start_run(&request)).await
}

#[tauri::command]
#[specta::specta]
pub async fn resume_run(studio: State<'_, Studio>, run: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.resume_run(&run)).await
}

#[tauri::command]
#[specta::specta]
pub async fn cancel_run(studio: State<'_, Studio>, run: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.cancel_run(&run)).await
}

#[tauri::command]
#[specta::specta]
pub async fn remove_run(studio: State<'_, Studio>, run: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.remove_run(&run)).await
}

#[tauri::command]
#[specta::specta]
pub async fn jobs(studio: State<'_, Studio>) -> Reply<Vec<JobView>> {
    on_thread(&studio, |studio| Ok(studio.jobs())).await
}

#[tauri::command]
#[specta::specta]
pub async fn runs(studio: State<'_, Studio>) -> Reply<Vec<RunView>> {
    on_thread(&studio, |studio| studio.runs()).await
}

#[tauri::command]
#[specta::specta]
pub async fn run_view(studio: State<'_, Studio>, run: String) -> Reply<RunView> {
    on_thread(&studio, move |studio| studio.run_view(&run)).await
}

#[tauri::command]
#[specta::specta]
pub async fn episodes(studio: State<'_, Studio>, run: String) -> Reply<Vec<EpisodeRow>> {
    on_thread(&studio, move |studio| studio.episodes(&run)).await
}

#[tauri::command]
#[specta::specta]
pub async fn episode(studio: State<'_, Studio>, run: String, question_id: String) -> Reply<EpisodeView> {
    on_thread(&studio, move |studio| studio.episode(&run, &question_id)).await
}

#[tauri::command]
#[specta::specta]
pub async fn import_corpus(
    studio: State<'_, Studio>,
    tasks: State<'_, Tasks>,
    key: String,
    path: String,
    name: String,
    format: Option<String>,
    progress: Channel<Progress>,
) -> Reply<ImportView> {
    let cancel = tasks.begin(&key);
    let mut meter = Meter::new(progress);
    let done = on_thread(&studio, move |studio| {
        let path = PathBuf::from(path);
        studio.import_corpus(&path, &name, format.as_deref(), &mut |p| meter.report(p), &cancel)
    })
    .await;
    tasks.end(&key);
    done
}

#[tauri::command]
#[specta::specta]
#[allow(clippy::too_many_arguments)]
pub async fn import_questions(
    studio: State<'_, Studio>,
    tasks: State<'_, Tasks>,
    key: String,
    path: String,
    name: String,
    corpus: Option<String>,
    format: Option<String>,
    progress: Channel<Progress>,
) -> Reply<ImportView> {
    let cancel = tasks.begin(&key);
    let mut meter = Meter::new(progress);
    let done = on_thread(&studio, move |studio| {
        let path = PathBuf::from(path);
        let (corpus, format) = (corpus.as_deref(), format.as_deref());
        studio.import_questions(&path, &name, corpus, format, None, &mut |p| meter.report(p), &cancel)
    })
    .await;
    tasks.end(&key);
    done
}

#[tauri::command]
#[specta::specta]
pub async fn remove_corpus(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.remove_corpus(&name)).await
}

#[tauri::command]
#[specta::specta]
pub async fn remove_question_set(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.remove_question_set(&name)).await
}

#[tauri::command]
#[specta::specta]
pub async fn preview(studio: State<'_, Studio>, path: String, format: Option<String>) -> Reply<PreviewView> {
    on_thread(&studio, move |_| {
        studio::preview::preview(&PathBuf::from(path), format.as_deref())
    })
    .await
}

#[tauri::command]
#[specta::specta]
pub async fn questions(
    studio: State<'_, Studio>,
    set: String,
    words: String,
    offset: u32,
    limit: u32,
) -> Reply<QuestionPage> {
    on_thread(&studio, move |studio| {
        studio.find_questions(&set, &words, offset, limit)
    })
    .await
}

#[tauri::command]
#[specta::specta]
pub async fn compare(studio: State<'_, Studio>, runs: Vec<String>) -> Reply<Comparison> {
    on_thread(&studio, move |studio| studio.compare(&runs)).await
}

/// Writes a run to a file, in a format as `runs export --as` names it; returns how many records.
#[tauri::command]
#[specta::specta]
pub async fn export_run(studio: State<'_, Studio>, run: String, path: String, format: String) -> Reply<u32> {
    on_thread(&studio, move |studio| {
        let exported = studio.export(&run, &PathBuf::from(path), format.parse::<Format>()?, None)?;
        Ok(exported.records)
    })
    .await
}

#[tauri::command]
#[specta::specta]
pub async fn add_model(
    studio: State<'_, Studio>,
    path: String,
    name: String,
    base: Option<String>,
) -> Reply<ModelView> {
    on_thread(&studio, move |studio| match base {
        Some(base) => studio.add_adapter(&PathBuf::from(path), &name, &base),
        None => studio.add_model(&PathBuf::from(path), &name),
    })
    .await
}

/// Registers a model behind a server; returns what may keep it from working.
#[tauri::command]
#[specta::specta]
pub async fn add_endpoint(
    studio: State<'_, Studio>,
    name: String,
    url: String,
    model: String,
    key_env: Option<String>,
    context_tokens: Option<u32>,
    grammar: bool,
) -> Reply<Vec<String>> {
    on_thread(&studio, move |studio| {
        let settings = Settings {
            url,
            model,
            key_env,
            context_tokens: context_tokens.map(|tokens| tokens as usize),
            route: Route::default(),
            grammar,
        };
        Ok(studio.add_endpoint(&name, settings, &Cancel::default())?.notes)
    })
    .await
}

#[tauri::command]
#[specta::specta]
pub async fn remove_model(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.remove_model(&name)).await
}

#[tauri::command]
#[specta::specta]
pub async fn doctor(studio: State<'_, Studio>) -> Reply<Vec<Check>> {
    on_thread(&studio, |studio| studio.doctor()).await
}

/// The machine's peaks, measured `again` or as kept, and what to expect of each model.
#[tauri::command]
#[specta::specta]
pub async fn machine(studio: State<'_, Studio>, again: bool) -> Reply<MachineReport> {
    on_thread(&studio, move |studio| studio.machine_report(again)).await
}

#[tauri::command]
#[specta::specta]
pub async fn search(studio: State<'_, Studio>, corpus: String, query: String, k: u32) -> Reply<SearchView> {
    on_thread(&studio, move |studio| studio.search(&corpus, &query, k)).await
}

#[tauri::command]
#[specta::specta]
pub async fn explain(
    studio: State<'_, Studio>,
    corpus: String,
    query: String,
    passage_id: String,
) -> Reply<Vec<TermView>> {
    on_thread(&studio, move |studio| studio.explain(&corpus, &query, &passage_id)).await
}
