//! Commands of Train and Annotate, as small as the others.

use studio::view::Progress;
use studio::{AgreementView, HumanState, HumanView, Studio, TrainRequest, TrainStep, TrainingView, VerdictView};
use tauri::State;
use tauri::ipc::Channel;

use crate::asking::{Meter, Tasks};
use crate::commands::{Reply, on_thread};

/// Starts a training, or goes on with a stopped one of that name; returns once its data is read.
#[tauri::command]
#[specta::specta]
pub async fn start_training(studio: State<'_, Studio>, request: TrainRequest) -> Reply<()> {
    on_thread(&studio, move |studio| studio.start_training(&request)).await
}

#[tauri::command]
#[specta::specta]
pub async fn resume_training(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.resume_training(&name)).await
}

#[tauri::command]
#[specta::specta]
pub async fn pause_training(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.pause_training(&name)).await
}

/// Ends a training here and keeps the best so far.
#[tauri::command]
#[specta::specta]
pub async fn keep_training(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.keep_training(&name)).await
}

#[tauri::command]
#[specta::specta]
pub async fn remove_training(studio: State<'_, Studio>, name: String) -> Reply<()> {
    on_thread(&studio, move |studio| studio.remove_training(&name)).await
}

#[tauri::command]
#[specta::specta]
pub async fn trainings(studio: State<'_, Studio>) -> Reply<Vec<TrainingView>> {
    on_thread(&studio, |studio| studio.trainings()).await
}

#[tauri::command]
#[specta::specta]
pub async fn training(studio: State<'_, Studio>, name: String) -> Reply<TrainingView> {
    on_thread(&studio, move |studio| studio.training(&name)).await
}

/// The steps made after `after`.
#[tauri::command]
#[specta::specta]
pub async fn training_steps(studio: State<'_, Studio>, name: String, after: u32) -> Reply<Vec<TrainStep>> {
    on_thread(&studio, move |studio| studio.training_steps(&name, after)).await
}

/// What every judge and reward model said of an episode.
#[tauri::command]
#[specta::specta]
pub async fn verdicts(studio: State<'_, Studio>, run: String, question_id: String) -> Reply<Vec<VerdictView>> {
    on_thread(&studio, move |studio| studio.verdicts(&run, &question_id)).await
}

/// Has another judge judge a stored run; returns how many states it judged now.
#[tauri::command]
#[specta::specta]
pub async fn annotate(
    studio: State<'_, Studio>,
    tasks: State<'_, Tasks>,
    key: String,
    run: String,
    judge: String,
    progress: Channel<Progress>,
) -> Reply<u32> {
    let cancel = tasks.begin(&key);
    let mut meter = Meter::new(progress);
    let done = on_thread(&studio, move |studio| {
        let report = studio.annotate(&run, &judge, &cancel, &mut |p| meter.report(p))?;
        Ok(report.judged)
    })
    .await;
    tasks.end(&key);
    done
}

#[tauri::command]
#[specta::specta]
pub async fn agreement(studio: State<'_, Studio>, run: String, a: String, b: String) -> Reply<AgreementView> {
    on_thread(&studio, move |studio| studio.agreement_view(&run, &a, &b)).await
}

#[tauri::command]
#[specta::specta]
pub async fn human_states(studio: State<'_, Studio>, run: String) -> Reply<Vec<HumanState>> {
    on_thread(&studio, move |studio| studio.human_states(&run)).await
}

#[tauri::command]
#[specta::specta]
pub async fn human_state(
    studio: State<'_, Studio>,
    run: String,
    question_id: String,
    step_idx: u32,
) -> Reply<HumanView> {
    on_thread(&studio, move |studio| studio.human_state(&run, &question_id, step_idx)).await
}

/// Stores a person's verdict; an abstention if neither a best nor a worst candidate is named.
#[tauri::command]
#[specta::specta]
pub async fn judge_by_hand(
    studio: State<'_, Studio>,
    run: String,
    question_id: String,
    step_idx: u32,
    best: Vec<u32>,
    worst: Vec<u32>,
    took_ms: f64,
) -> Reply<()> {
    on_thread(&studio, move |studio| {
        studio.judge_by_hand(&run, &question_id, step_idx, &best, &worst, took_ms)
    })
    .await
}

#[tauri::command]
#[specta::specta]
pub async fn unjudge(studio: State<'_, Studio>, run: String, question_id: String, step_idx: u32) -> Reply<()> {
    on_thread(&studio, move |studio| studio.unjudge(&run, &question_id, step_idx)).await
}
