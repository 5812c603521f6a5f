//! The real window, driven through WebDriver under Xvfb: what a newcomer, a researcher and a presenter do.
//! Runs where `RAG_GYM_WINDOW_TESTS` is set (`cargo xtask test` sets it). Screenshots of every screen in
//! both themes go to `artefacts/`.

#[path = "window/driver.rs"]
mod driver;
#[path = "window/teaching.rs"]
mod teaching;
#[path = "window/times.rs"]
mod times;

use anyhow::{Result, ensure};
use driver::{ENTER, ESCAPE, PATIENCE, Window};
use serde_json::json;

const IDLE: &str = "!document.querySelector('[data-testid=job]')";

#[tokio::test]
async fn a_newcomer_asks_a_researcher_runs_and_compares_and_a_presenter_shows() -> Result<()> {
    if std::env::var_os("RAG_GYM_WINDOW_TESTS").is_none() {
        eprintln!("not asked for: `cargo xtask test` sets RAG_GYM_WINDOW_TESTS");
        return Ok(());
    }
    let window = Window::open().await?;
    first_run_to_first_answer(&window).await?;
    earlier_questions_and_another_agent(&window).await?;
    import_and_its_errors(&window).await?;
    run_pause_resume_compare(&window).await?;
    episode_by_keyboard(&window).await?;
    present(&window).await?;
    teaching::train(&window).await?;
    let judged = teaching::annotate(&window).await?;
    teaching::rewards_side_by_side(&window, &judged).await?;
    teaching::preference_forms(&window).await?;
    everywhere(&window).await?;
    let barriers = window.barriers.borrow().join("\n");
    ensure!(barriers.is_empty(), "barriers:\n{barriers}");
    let wrong = window.script("return window.wrong").await?;
    ensure!(wrong == json!([]), "the page complained: {wrong:#}");
    window.client.clone().close().await?;
    Ok(())
}

/// `RAG_GYM_WINDOW_TIMES=1 cargo test --test window cold_start -- --nocapture`, with nothing else at work.
#[tokio::test]
async fn cold_start_and_memory_are_measured() -> Result<()> {
    if std::env::var_os("RAG_GYM_WINDOW_TIMES").is_none() {
        eprintln!("not asked for: set RAG_GYM_WINDOW_TIMES");
        return Ok(());
    }
    times::cold_start().await
}

async fn first_run_to_first_answer(window: &Window) -> Result<()> {
    // The first run sets itself up; then the question is typed already.
    window.find("ask-question").await?;
    window.listen().await?;
    window
        .holds("document.querySelector('[data-testid=ask-button]:enabled')", PATIENCE)
        .await?;
    window
        .holds("document.querySelectorAll('.suggestion').length === 3", PATIENCE)
        .await?;
    window.inspect("home").await?;
    // Short candidates: what is shown is tested here, not what a small model knows.
    window.press("2").await?;
    window.click("more").await?;
    for (field, value) in [
        ("max-tokens", "32"),
        ("max-steps", "2"),
        ("candidates", "3"),
        ("agent", "react"),
    ] {
        window.choose(field, value).await?;
    }
    window.inspect("ask-empty").await?;
    window.click("ask-button").await?;
    // Text streams into cards that keep their height.
    window
        .holds(
            "[...document.querySelectorAll('[data-testid=candidate]')].some((card) => card.innerText.length > 12)",
            PATIENCE,
        )
        .await?;
    const HEIGHT: &str = "return document.querySelector('[data-testid=candidate]').offsetHeight";
    let before = window.script(HEIGHT).await?;
    window.picture("ask-live").await?;
    window.find("answer").await?;
    ensure!(
        before == window.script(HEIGHT).await?,
        "the candidates changed their height"
    );
    window
        .holds("document.querySelector('[data-testid=no-support], [data-testid=answer-card] [data-testid=passage], [data-testid=answer-card] .verdict')", PATIENCE)
        .await?;
    window.inspect("ask").await
}

async fn earlier_questions_and_another_agent(window: &Window) -> Result<()> {
    window.choose("other-agent", "direct").await?;
    window.click("ask-beside").await?;
    window
        .holds(
            "document.querySelectorAll('[data-testid=answer]').length === 2",
            PATIENCE,
        )
        .await?;
    window.inspect("ask-beside").await?;
    window.click("ask-history").await?;
    window
        .holds(
            "document.querySelectorAll('[data-testid=earlier]').length === 2",
            PATIENCE,
        )
        .await?;
    window.click("earlier").await?;
    window
        .holds("document.querySelectorAll('[data-testid=answer]').length === 1 && !document.querySelector('[data-testid=earlier]')", PATIENCE)
        .await
}

async fn import_and_its_errors(window: &Window) -> Result<()> {
    let good = "{\"id\":\"a\",\"title\":\"Apple\",\"text\":\"A sweet fruit of a tree.\"}\n{\"id\":\"b\"\n";
    let file = window.write("fruit.jsonl", good)?;
    window.press("7").await?;
    window.find("import").await?;
    // What the shell tells the page when a file is dropped on the window.
    let dropped = json!({"paths": [file.to_string_lossy()], "position": {"x": 400, "y": 300}});
    window
        .script(&format!(
            "window.__TAURI_INTERNALS__.invoke('plugin:event|emit', {{ event: 'tauri://drag-drop', payload: {dropped} }})"
        ))
        .await?;
    // The file is looked into before anything is imported.
    let preview = window.text("import-preview").await?;
    ensure!(
        preview.contains("Apple") && preview.contains("jsonl"),
        "the preview: {preview}"
    );
    window.click("import-button").await?;
    let report = window.text("import-report").await?;
    ensure!(
        report.contains("fruit.jsonl line 2") && report.contains("1 kept"),
        "the report names the line: {report}"
    );
    window.inspect("corpora").await?;

    // Markup in a document stays text.
    window.choose("search-query", "sweet").await?;
    window
        .script("const select = document.querySelector('select[aria-label=Corpus]'); select.value = 'fruit'; select.dispatchEvent(new Event('change', { bubbles: true }))")
        .await?;
    window.click("search-button").await?;
    window
        .holds(
            "document.querySelector('[data-testid=hit] strong')?.innerText === 'Apple' && document.querySelector('[data-testid=hit] mark')?.innerText === 'sweet'",
            PATIENCE,
        )
        .await?;
    window
        .script("document.querySelector('[data-testid=hit] details').open = true")
        .await?;
    window
        .holds("document.querySelector('[data-testid=hit] td')", PATIENCE)
        .await?;

    let bad = window.write("notes.jsonl", "these are no records\n")?;
    window.fill("import-path", &bad.to_string_lossy()).await?;
    window.press("\t").await?;
    let error = window.text("error").await?;
    ensure!(
        error.contains("notes.jsonl") && error.contains("could not be imported"),
        "the error: {error}"
    );
    window
        .script("document.querySelector('[data-testid=error]').scrollIntoView()")
        .await?;
    window.inspect("import-error").await?;

    window
        .go(
            "#/corpora/factbook-dev",
            "document.querySelectorAll('[data-testid=questions] tr').length === 26",
        )
        .await?;
    // A corpus goes only after a second word.
    window
        .script("[...document.querySelectorAll('[data-testid=corpus-row]')].find((row) => row.innerText.includes('fruit')).querySelector('button').click()")
        .await?;
    window.click("confirm").await?;
    window
        .holds(
            "document.querySelectorAll('[data-testid=corpus-row]').length === 1",
            PATIENCE,
        )
        .await
}

async fn run_pause_resume_compare(window: &Window) -> Result<()> {
    window.press("3").await?;
    window.find("run-new").await?;
    window.inspect("runs-empty").await?;
    for (name, agent, limit, candidates) in [("short", "direct", "8", "1"), ("paused", "react", "40", "3")] {
        window.press("n").await?;
        for (field, value) in [
            ("run-name", name),
            ("run-limit", limit),
            ("agent", agent),
            ("candidates", candidates),
        ] {
            window.choose(field, value).await?;
        }
        let command = window.text("command-line").await?;
        ensure!(
            command.contains(&format!("--agent {agent}")) && command.contains("--limit"),
            "the command: {command}"
        );
        if name == "paused" {
            window.picture("runs-form").await?;
        }
        window.click("run-start").await?;
        window.find("job").await?;
        if name == "short" {
            window.holds(IDLE, PATIENCE).await?;
        }
    }
    // The second is paused and resumed from its own screen, by keyboard.
    window
        .script("[...document.querySelectorAll('[data-testid=run-row]')].find((row) => row.innerText.includes('paused')).click()")
        .await?;
    window.find("run-cancel").await?;
    window.press(" ").await?;
    window
        .holds(
            "document.querySelector('[data-testid=run-status]')?.innerText === 'stopped'",
            PATIENCE,
        )
        .await?;
    window.inspect("run-stopped").await?;
    window.click("run-resume").await?;
    window
        .holds(
            "document.querySelector('[data-testid=run-status]')?.innerText === 'finished'",
            PATIENCE,
        )
        .await?;
    window.inspect("run").await?;

    // Both are selected by keyboard and compared.
    window.press(&ESCAPE.to_string()).await?;
    window
        .holds(
            "document.querySelectorAll('[data-testid=run-row]').length === 2",
            PATIENCE,
        )
        .await?;
    window
        .script("document.querySelector('[data-testid=run-row]').focus()")
        .await?;
    window.press(" j").await?;
    window
        .holds("document.activeElement.dataset.row === '1'", PATIENCE)
        .await?;
    window.press(" ").await?;
    window.inspect("runs").await?;
    window.press("c").await?;
    let table = window.text("compare-table").await?;
    ensure!(
        table.contains("short") && table.contains("paused") && table.contains("8 shared questions"),
        "the comparison: {table}"
    );
    let scaling = window.text("scaling").await?;
    ensure!(
        scaling.contains("direct · one candidate") && scaling.contains("react · majority"),
        "the curves: {scaling}"
    );
    // The rows in sight are drawn; all that either run asked are counted, under a head.
    window
        .holds(
            "document.querySelectorAll('[data-testid=compare-row]').length >= 3
             && document.querySelector('table:has([data-testid=compare-row])').ariaRowCount === '41'",
            PATIENCE,
        )
        .await?;
    window.inspect("compare").await
}

async fn episode_by_keyboard(window: &Window) -> Result<()> {
    window
        .go(
            "#/runs",
            "document.querySelectorAll('[data-testid=run-row]').length === 2",
        )
        .await?;
    window.choose("run-filter", "agent:react n>=3").await?;
    window
        .holds(
            "document.querySelectorAll('[data-testid=run-row]').length === 1",
            PATIENCE,
        )
        .await?;
    window
        .script("document.querySelector('[data-testid=run-row]').focus()")
        .await?;
    window.press(&ENTER.to_string()).await?;
    window.find("episode-row").await?;
    window
        .script("document.querySelector('[data-testid=episode-row]').focus()")
        .await?;
    window.press(&ENTER.to_string()).await?;
    window.find("candidate-detail").await?;
    const STEP: &str = "[...document.querySelectorAll('[data-testid=step]')].findIndex((step) => step.ariaCurrent === 'step' || step.getAttribute('aria-current') === 'step')";
    window.holds(&format!("{STEP} === 0"), PATIENCE).await?;
    let steps = window
        .script("return document.querySelectorAll('[data-testid=step]').length")
        .await?;
    window.press("jjj").await?;
    window
        .holds(&format!("{STEP} === Math.min(3, {steps} - 1)"), PATIENCE)
        .await?;
    window.press("kkk").await?;
    window.holds(&format!("{STEP} === 0"), PATIENCE).await?;
    const CANDIDATE: &str = "[...document.querySelectorAll('[data-testid=candidate]')].findIndex((tab) => tab.getAttribute('aria-pressed') === 'true')";
    window.press("hhh").await?;
    window.holds(&format!("{CANDIDATE} === 0"), PATIENCE).await?;
    window.press("l").await?;
    window
        .holds(
            &format!("{CANDIDATE} === Math.min(1, document.querySelectorAll('[data-testid=candidate]').length - 1)"),
            PATIENCE,
        )
        .await?;
    window.press("r").await?;
    window
        .holds(
            "document.querySelector('[data-testid=raw]').getAttribute('aria-pressed') === 'true'",
            PATIENCE,
        )
        .await?;
    window.press("rg").await?;
    window
        .holds(
            "!document.querySelector('.badge.gold')?.innerText.startsWith('★')",
            PATIENCE,
        )
        .await?;
    window.press("g").await?;
    window.inspect("episode").await?;
    window.press("]").await?;
    window
        .holds("document.querySelector('main').innerText.includes('2 of 40')", PATIENCE)
        .await
}

async fn present(window: &Window) -> Result<()> {
    window.press("p").await?;
    window.find("frame-question").await?;
    window.inspect("present").await?;
    window.press(" ").await?;
    window.find("frame-candidates").await?;
    window.inspect("present-candidates").await?;
    for _ in 0..12 {
        window.press(" ").await?;
    }
    window.find("frame-support").await?;
    window.inspect("present-answer").await?;
    window.press(&ESCAPE.to_string()).await?;
    window.find("candidate-detail").await?;
    Ok(())
}

async fn everywhere(window: &Window) -> Result<()> {
    // The palette goes anywhere and does anything that a key does.
    window.press_with_control('k').await?;
    window.find("palette").await?;
    window.press("settings").await?;
    window.inspect("palette").await?;
    window.press(&ENTER.to_string()).await?;
    window.click("theme-dark").await?;
    window
        .holds("document.documentElement.dataset.theme === 'dark'", PATIENCE)
        .await?;
    window.click("theme-light").await?;
    window.click("doctor").await?;
    let report = window.text("doctor-report").await?;
    ensure!(
        report.contains("well") && !report.contains("not well"),
        "the doctor: {report}"
    );
    window.inspect("settings").await?;
    window.press("?").await?;
    window.find("sheet").await?;
    window.inspect("shortcuts").await?;
    window.press(&ESCAPE.to_string()).await?;
    window.press("8").await?;
    window.find("model-row").await?;
    let room = window.text("model-room").await?;
    ensure!(room.starts_with("fits into"), "the built-in model is small: {room}");
    window.inspect("models").await?;

    // Larger text and a smaller window: nothing sticks out.
    window.client.set_window_rect(0, 0, 1000, 700).await?;
    for _ in 0..5 {
        window.press_with_control('=').await?;
    }
    for place in [
        "home", "ask", "runs", "compare", "train", "annotate", "corpora", "models", "settings",
    ] {
        window
            .go(
                &format!("#/{place}"),
                &format!("document.querySelector('[data-testid=nav-{place}]').getAttribute('aria-current')"),
            )
            .await?;
        window.inspect(&format!("large-{place}")).await?;
    }
    Ok(())
}
