//! Train, Annotate, and the rewards of every judge: real trainings of a few steps, real verdicts.

use anyhow::{Result, ensure};

use crate::driver::{ESCAPE, PATIENCE, Window};

const STATE: &str = "document.querySelector('[data-testid=train-state]')?.innerText";
const POINTS: &str = "Number(document.querySelector('[data-testid=chart]')?.dataset.points ?? 0)";

async fn fill_in(window: &Window, name: &str) -> Result<()> {
    window.press("n").await?;
    window.find("train-form").await?;
    for (field, value) in [
        ("train-limit", "4"),
        ("train-batch", "2"),
        ("train-rank", "4"),
        ("train-held", "0.2"),
        ("train-every", "3"),
        ("train-name", name),
    ] {
        window.choose(field, value).await?;
    }
    let command = window.text("train-command").await?;
    for part in [
        "train sft --expert factbook-train",
        "--limit 4",
        "--rank 4",
        &format!("--out {name}"),
    ] {
        ensure!(command.contains(part), "the command: {command}");
    }
    Ok(())
}

pub async fn train(window: &Window) -> Result<()> {
    window.press("5").await?;
    window.find("train-new").await?;
    window.inspect("train-empty").await?;
    fill_in(window, "tiny").await?;
    window.inspect("train-form").await?;
    window.click("train-start").await?;
    window.holds(&format!("{STATE} === 'running'"), PATIENCE).await?;
    // The curve moves while the training is a job like any other, and every other place answers.
    window.holds(&format!("{POINTS} >= 1"), PATIENCE).await?;
    window.find("job").await?;
    window
        .go(
            "#/corpora/factbook-dev",
            "document.querySelectorAll('[data-testid=questions] tr').length === 26",
        )
        .await?;
    window.go("#/train/tiny", &format!("{POINTS} >= 2")).await?;
    window.press(" ").await?;
    window.holds(&format!("{STATE} === 'stopped'"), PATIENCE).await?;
    window.find("train-resume").await?;
    window.inspect("train-stopped").await?;
    let made = window.script(&format!("return {POINTS}")).await?.as_u64().unwrap_or(0);
    ensure!(made >= 2, "the curve of a paused training has {made} steps");
    window.press(" ").await?;
    window.holds(&format!("{STATE} === 'running'"), PATIENCE).await?;
    window.holds(&format!("{POINTS} > {made}"), PATIENCE).await?;
    window.holds(&format!("{STATE} === 'finished'"), PATIENCE).await?;
    let best = window.text("train-best").await?;
    ensure!(
        best.replace('−', "-").parse::<f64>().is_ok_and(|loss| loss > 0.0),
        "the best held-out loss: {best}"
    );
    // Every step once, as if it had never been paused; by keys, the numbers behind the charts.
    let total = window.script(&format!("return {POINTS}")).await?;
    window.press("e").await?;
    window
        .holds(
            &format!(
                "document.querySelector('table:has([data-testid=train-row])').ariaRowCount === String({total} + 1)"
            ),
            PATIENCE,
        )
        .await?;
    window.inspect("train-table").await?;
    window.press("el").await?;
    window
        .holds(
            "document.querySelector('[data-testid=log]').getAttribute('aria-pressed') === 'true'",
            PATIENCE,
        )
        .await?;
    window.press("l").await?;
    window.inspect("train").await?;

    // A second one is ended early; what it came to is a model too.
    window.press(&ESCAPE.to_string()).await?;
    window.find("training-row").await?;
    fill_in(window, "ended").await?;
    window.click("train-start").await?;
    window.holds(&format!("{POINTS} >= 2"), PATIENCE).await?;
    window.click("train-keep").await?;
    window.holds(&format!("{STATE} === 'finished'"), PATIENCE).await?;
    let kept = window.script(&format!("return {POINTS}")).await?;
    ensure!(kept.as_u64() < total.as_u64(), "{kept} of {total} steps were made");
    // Drawn together, by keyboard.
    window.press(&ESCAPE.to_string()).await?;
    window
        .holds(
            "document.querySelectorAll('[data-testid=training-row]').length === 2",
            PATIENCE,
        )
        .await?;
    window
        .script("document.querySelector('[data-testid=training-row]').focus()")
        .await?;
    window.press(" j").await?;
    window
        .holds("document.activeElement.dataset.row === '1'", PATIENCE)
        .await?;
    window.press(" ").await?;
    window.inspect("train-list").await?;
    window.press("c").await?;
    window
        .holds(
            &format!("{POINTS} === {total} && document.querySelectorAll('[data-testid=chart] li').length >= 8"),
            PATIENCE,
        )
        .await?;
    window.inspect("train-overlay").await?;
    window.press("8").await?;
    window
        .holds(
            "['tiny', 'ended'].every((name) => [...document.querySelectorAll('[data-testid=model-row] h2')].some((title) => title.innerText === name))",
            PATIENCE,
        )
        .await?;
    // A server is added before it runs, and says so.
    for (field, value) in [
        ("endpoint-url", "http://127.0.0.1:9/v1"),
        ("endpoint-model", "some/model"),
        ("endpoint-key", "RAG_GYM_NO_SUCH_KEY"),
        ("endpoint-name", "far"),
    ] {
        window.choose(field, value).await?;
    }
    window.click("endpoint-add").await?;
    let added = window.text("endpoint-added").await?;
    ensure!(
        added.contains("far") && added.contains("RAG_GYM_NO_SUCH_KEY"),
        "what is said of the server: {added}"
    );
    window
        .script("document.querySelector('[data-testid=endpoint-added]').scrollIntoView()")
        .await?;
    window.inspect("models-endpoint").await
}

/// Returns the question whose state was judged first.
pub async fn annotate(window: &Window) -> Result<String> {
    const JUDGED: &str = "document.querySelector('[data-testid=annotate-progress]')?.innerText";
    const AT: &str = "document.querySelector('[data-testid=annotate-state]')?.dataset.at";
    window.press("6").await?;
    window.find("annotate-row").await?;
    window.inspect("annotate-runs").await?;
    window
        .script("[...document.querySelectorAll('[data-testid=annotate-row]')].find((row) => row.innerText.includes('paused')).click()")
        .await?;
    window.find("annotate-state").await?;
    // Nothing tells which candidate was taken, or what a judge thought of it.
    let blind = window.text("annotate-candidates").await?;
    ensure!(
        !["reward", "taken", "×", "✓"].iter().any(|word| blind.contains(word)),
        "a blind candidate says: {blind}"
    );
    window.press("bA").await?;
    window
        .holds(
            "[...document.querySelectorAll('[data-testid=blind] .name')].map((name) => name.innerText).slice(0, 2).join() === 'avoid,best'",
            PATIENCE,
        )
        .await?;
    window.inspect("annotate").await?;
    let first = window.script(&format!("return {AT}")).await?;
    let question = window
        .script("return document.querySelector('[data-testid=annotate-state] .question').innerText")
        .await?;
    window.press(&crate::driver::ENTER.to_string()).await?;
    window.holds(&format!("{JUDGED}.startsWith('1 of')"), PATIENCE).await?;
    window.press("x").await?;
    window.holds(&format!("{JUDGED}.startsWith('2 of')"), PATIENCE).await?;
    // Back over both, then forward again.
    window.press("u").await?;
    window.holds(&format!("{JUDGED}.startsWith('1 of')"), PATIENCE).await?;
    window.press("u").await?;
    window
        .holds(&format!("{JUDGED}.startsWith('0 of') && {AT} === {first}"), PATIENCE)
        .await?;
    for n in 1..=4 {
        window.press("a").await?;
        window.press(&crate::driver::ENTER.to_string()).await?;
        window
            .holds(&format!("{JUDGED}.startsWith('{n} of')"), PATIENCE)
            .await?;
    }
    // The run had no judge: another one judges it now, and only here they are compared.
    window.press("v").await?;
    window.find("annotate-summary").await?;
    window.click("judge-start").await?;
    let agreement = window.text("annotate-summary").await?;
    ensure!(agreement.contains("4 of"), "the summary: {agreement}");
    let agreement = window.text("agreement").await?;
    ensure!(agreement.contains("n ="), "the agreement: {agreement}");
    window.inspect("annotate-agreement").await?;
    Ok(question.as_str().unwrap_or_default().to_owned())
}

pub async fn rewards_side_by_side(window: &Window, question: &str) -> Result<()> {
    window
        .go("#/runs", "document.querySelector('[data-testid=run-row]')")
        .await?;
    window
        .script("[...document.querySelectorAll('[data-testid=run-row]')].find((row) => row.innerText.includes('paused')).click()")
        .await?;
    window.find("episode-row").await?;
    window
        .script(&format!(
            "[...document.querySelectorAll('[data-testid=episode-row]')].find((row) => row.innerText.includes({question:?})).click()"
        ))
        .await?;
    window.find("candidate-detail").await?;
    window.press("w").await?;
    let mut table = window.text("verdicts").await?;
    // A person judges the steps that have a choice only.
    for _ in 0..6 {
        if !table.contains("human") {
            window.press("j").await?;
            table = window.text("verdicts").await?;
        }
    }
    ensure!(
        table.contains("human") && table.contains("evidence"),
        "the rewards side by side: {table}"
    );
    window
        .script("[...document.querySelectorAll('[data-testid=verdicts] th button')].find((judge) => judge.innerText === 'evidence').focus()")
        .await?;
    window.inspect("episode-rewards").await?;
    window.press("w").await
}

/// A judged run teaches a preference or a reward model without gold evidence, unless a person asks for that too.
pub async fn preference_forms(window: &Window) -> Result<()> {
    window.press("5").await?;
    window.find("training-row").await?;
    window.press("n").await?;
    window.click("method-dpo").await?;
    ensure!(window.text("train-command").await?.contains("--expert factbook-train"));
    window
        .script("[...document.querySelectorAll('label:has([data-testid=train-run])')].find((run) => run.innerText.includes('paused')).click()")
        .await?;
    window.find("train-judge").await?;
    window.choose("train-judge", "evidence").await?;
    let command = window.text("train-command").await?;
    for part in ["train dpo --from ", "--judge evidence", "--beta 0.1", "--out dpo-1"] {
        ensure!(command.contains(part), "the command: {command}");
    }
    ensure!(!command.contains("--expert"), "the command: {command}");
    window.inspect("train-form-dpo").await?;
    window.click("method-prm").await?;
    window.click("expert-factbook-train").await?;
    let command = window.text("train-command").await?;
    for part in [
        "train prm --from ",
        "--expert factbook-train",
        "--centre 0.01",
        "--out prm-1",
    ] {
        ensure!(command.contains(part), "the command: {command}");
    }
    window.inspect("train-form-prm").await
}
