//! The real window, driven through WebDriver under Xvfb: what a newcomer, a researcher and a presenter do.
//! Runs where `RAG_GYM_WINDOW_TESTS` is set (`cargo xtask test` sets it). Screenshots of every screen in
//! both themes go to `artefacts/`.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};

const CONTROL: char = '\u{e009}';
const ESCAPE: char = '\u{e00c}';
const ENTER: char = '\u{e007}';
/// A model that is woken on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(150);

/// Ends its process when the test does.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Window {
    client: Client,
    home: tempfile::TempDir,
    /// What the accessibility rules found, screen by screen.
    barriers: RefCell<Vec<String>>,
    _driver: Process,
    _display: Process,
}

impl Window {
    async fn open() -> Result<Window> {
        let home = tempfile::tempdir()?;
        let mut display = Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1360x900x24", "-nolisten", "tcp"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start Xvfb: run `cargo xtask setup`")?;
        let mut number = String::new();
        BufReader::new(display.stdout.take().context("Xvfb has no output")?).read_line(&mut number)?;
        let display = Process(display);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let driver = Command::new("WebKitWebDriver")
            .arg(format!("--port={port}"))
            .env("DISPLAY", format!(":{}", number.trim()))
            .env("TAURI_AUTOMATION", "true")
            .env("TAURI_WEBVIEW_AUTOMATION", "true")
            .env("RAG_GYM_HOME", home.path())
            // What the page remembers of earlier windows (theme, text size) stays out of the test.
            .env("XDG_DATA_HOME", home.path().join("data"))
            .env("XDG_CONFIG_HOME", home.path().join("config"))
            .env("XDG_CACHE_HOME", home.path().join("cache"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start WebKitWebDriver: run `cargo xtask setup`")?;
        let driver = Process(driver);
        let options = json!({"webkitgtk:browserOptions": {"binary": env!("CARGO_BIN_EXE_rag-gym-studio"), "args": []}});
        let Value::Object(capabilities) = options else {
            bail!("the capabilities are an object")
        };
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        builder.capabilities(capabilities);
        let url = format!("http://127.0.0.1:{port}");
        let mut attempts = 0;
        let client = loop {
            match builder.connect(&url).await {
                Ok(client) => break client,
                Err(error) if attempts == 50 => return Err(error).context("cannot reach the window"),
                Err(_) => attempts += 1,
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        client.set_window_rect(0, 0, 1360, 900).await?;
        Ok(Window {
            client,
            home,
            barriers: RefCell::default(),
            _driver: driver,
            _display: display,
        })
    }

    async fn script(&self, body: &str) -> Result<Value> {
        Ok(self.client.execute(body, Vec::new()).await?)
    }

    /// Waits until a JavaScript expression holds.
    async fn holds(&self, expression: &str, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if self.script(&format!("return Boolean({expression})")).await? == Value::Bool(true) {
                return Ok(());
            }
            if start.elapsed() > patience {
                self.picture("failure").await?;
                let page = self.script("return document.body.innerText.slice(0, 1500)").await?;
                bail!("never came true: {expression}\nthe page says: {page}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn find(&self, test_id: &str) -> Result<fantoccini::elements::Element> {
        self.holds(
            &format!("document.querySelector('[data-testid=\"{test_id}\"]')"),
            PATIENCE,
        )
        .await?;
        let selector = format!("[data-testid=\"{test_id}\"]");
        Ok(self.client.find(Locator::Css(&selector)).await?)
    }

    async fn click(&self, test_id: &str) -> Result<()> {
        self.find(test_id)
            .await?
            .click()
            .await
            .with_context(|| format!("cannot click `{test_id}`"))
    }

    async fn text(&self, test_id: &str) -> Result<String> {
        Ok(self.find(test_id).await?.text().await?)
    }

    async fn fill(&self, test_id: &str, text: &str) -> Result<()> {
        let field = self.find(test_id).await?;
        field.clear().await?;
        field.send_keys(text).await?;
        Ok(())
    }

    /// Sets a field of the page as a person would, whatever kind of field it is.
    async fn choose(&self, test_id: &str, value: &str) -> Result<()> {
        self.find(test_id).await?;
        let (test_id, value) = (json!(test_id), json!(value));
        self.script(&format!(
            "const field = document.querySelector(`[data-testid=${{{test_id}}}]`); field.value = {value};
             field.dispatchEvent(new Event('input', {{ bubbles: true }})); field.dispatchEvent(new Event('change', {{ bubbles: true }}));"
        ))
        .await?;
        Ok(())
    }

    async fn press(&self, keys: &str) -> Result<()> {
        for key in keys.chars() {
            let actions = KeyActions::new("keys".into())
                .then(KeyAction::Down { value: key })
                .then(KeyAction::Up { value: key });
            self.client.perform_actions(actions).await?;
        }
        Ok(())
    }

    async fn press_with_control(&self, key: char) -> Result<()> {
        let actions = KeyActions::new("keys".into())
            .then(KeyAction::Down { value: CONTROL })
            .then(KeyAction::Down { value: key })
            .then(KeyAction::Up { value: key })
            .then(KeyAction::Up { value: CONTROL });
        self.client.perform_actions(actions).await?;
        Ok(())
    }

    async fn go(&self, hash: &str, until: &str) -> Result<()> {
        self.script(&format!("location.hash = {}", json!(hash))).await?;
        self.holds(until, PATIENCE).await
    }

    async fn picture(&self, name: &str) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artefacts");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.png")), self.client.screenshot().await?)?;
        Ok(())
    }

    /// Pictures of the screen in both themes. Notes what the accessibility rules object to, and whether
    /// anything sticks out of the window sideways.
    async fn inspect(&self, name: &str) -> Result<()> {
        for theme in ["dark", "light"] {
            // Painted, not only set: two frames later.
            let body = format!(
                "const done = arguments[arguments.length - 1]; document.documentElement.dataset.theme = '{theme}';
                 requestAnimationFrame(() => requestAnimationFrame(() => done(true)));"
            );
            self.client.execute_async(&body, Vec::new()).await?;
            self.picture(&format!("{name}-{theme}")).await?;
            let found = self
                .client
                .execute_async(
                    "const done = arguments[arguments.length - 1];
                     axe.run(document, { resultTypes: ['violations'], rules: { region: { enabled: false } } }).then((result) =>
                       done(result.violations.flatMap((rule) => rule.nodes.slice(0, 3).map((node) => `${rule.id}: ${node.target} ${node.failureSummary}`))),
                       (error) => done([String(error)]));",
                    Vec::new(),
                )
                .await?;
            for barrier in found.as_array().context("axe gives a list")? {
                let barrier = barrier.as_str().unwrap_or_default();
                self.barriers.borrow_mut().push(format!("{name}, {theme}: {barrier}"));
            }
        }
        let wide = self
            .script("return document.documentElement.scrollWidth > window.innerWidth")
            .await?;
        if wide != Value::Bool(false) {
            self.barriers
                .borrow_mut()
                .push(format!("{name}: wider than the window"));
        }
        Ok(())
    }

    /// Brings axe-core into the page and begins to collect what goes wrong there.
    async fn listen(&self) -> Result<()> {
        let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui/node_modules/axe-core/axe.min.js");
        let axe = std::fs::read_to_string(&axe).context("axe-core is missing: run `cargo xtask setup`")?;
        self.script(&format!("{axe}; window.axe = axe;")).await?;
        self.script(
            "window.wrong = [];
             for (const level of ['error', 'warn']) {
               const before = console[level];
               console[level] = (...said) => { window.wrong.push(said.map(String).join(' ')); before.apply(console, said); };
             }
             window.addEventListener('error', (event) => window.wrong.push(event.message));
             window.addEventListener('unhandledrejection', (event) => window.wrong.push(String(event.reason)));
             document.addEventListener('securitypolicyviolation', (event) => window.wrong.push(`refused by the policy: ${event.violatedDirective} ${event.blockedURI}`));",
        )
        .await?;
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.home.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }
}

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
    everywhere(&window).await?;
    let barriers = window.barriers.borrow().join("\n");
    ensure!(barriers.is_empty(), "barriers:\n{barriers}");
    let wrong = window.script("return window.wrong").await?;
    ensure!(wrong == json!([]), "the page complained: {wrong:#}");
    window.client.clone().close().await?;
    Ok(())
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
    window.press("5").await?;
    window.fill("import-path", &file.to_string_lossy()).await?;
    window.press("\t").await?;
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
    for (name, agent, limit) in [("short", "direct", "8"), ("paused", "react", "40")] {
        window.press("n").await?;
        for (field, value) in [("run-name", name), ("run-limit", limit), ("agent", agent)] {
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
    window
        .holds(
            "document.querySelectorAll('[data-testid=compare-row]').length >= 3",
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
    window.press("6").await?;
    window.find("model-row").await?;
    window.inspect("models").await?;

    // Larger text and a smaller window: nothing sticks out.
    window.client.set_window_rect(0, 0, 1000, 700).await?;
    for _ in 0..5 {
        window.press_with_control('=').await?;
    }
    for place in ["home", "ask", "runs", "compare", "corpora", "models", "settings"] {
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
