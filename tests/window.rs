//! The real window, driven through WebDriver under Xvfb: first run to first answer, import by file, a run
//! and its episode. Runs where `RAG_GYM_WINDOW_TESTS` is set (`cargo xtask test` sets it); screenshots go
//! to `artefacts/`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fantoccini::{Client, ClientBuilder, Locator};

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
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start WebKitWebDriver: run `cargo xtask setup`")?;
        let driver = Process(driver);
        let options = serde_json::json!({"webkitgtk:browserOptions": {"binary": env!("CARGO_BIN_EXE_rag-gym-studio"), "args": []}});
        let serde_json::Value::Object(capabilities) = options else {
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
        Ok(Window {
            client,
            home,
            _driver: driver,
            _display: display,
        })
    }

    async fn find(&self, test_id: &str, seconds: u64) -> Result<fantoccini::elements::Element> {
        let selector = format!("[data-testid=\"{test_id}\"]");
        let found = self
            .client
            .wait()
            .at_most(Duration::from_secs(seconds))
            .for_element(Locator::Css(&selector))
            .await;
        if found.is_err() {
            self.picture("failure").await?;
        }
        found.with_context(|| format!("no `{test_id}` after {seconds} s"))
    }

    async fn click(&self, test_id: &str) -> Result<()> {
        self.find(test_id, 20)
            .await?
            .click()
            .await
            .with_context(|| format!("cannot click `{test_id}`"))
    }

    async fn picture(&self, name: &str) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artefacts");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.png")), self.client.screenshot().await?)?;
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.home.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }
}

#[tokio::test]
async fn a_newcomer_sees_an_answer_imports_a_file_and_opens_an_episode() -> Result<()> {
    if std::env::var_os("RAG_GYM_WINDOW_TESTS").is_none() {
        eprintln!("not asked for: `cargo xtask test` sets RAG_GYM_WINDOW_TESTS");
        return Ok(());
    }
    let window = Window::open().await?;

    // The first run sets itself up; then the question is typed already.
    window.find("ask-question", 120).await?;
    window.picture("home").await?;
    window.click("ask-button").await?;
    let answer = window.find("answer", 120).await?.text().await?;
    ensure!(!answer.trim().is_empty(), "the answer is empty");
    window.find("step", 5).await?;
    window.picture("ask").await?;

    // A file is imported by its path; its one bad line is named.
    let file = window.write(
        "fruit.jsonl",
        "{\"id\":\"a\",\"title\":\"Apple\",\"text\":\"A fruit.\"}\n{\"id\":\"b\"\n",
    )?;
    window.click("nav-corpora").await?;
    window
        .find("import-path", 20)
        .await?
        .send_keys(&file.to_string_lossy())
        .await?;
    window.click("import-button").await?;
    let report = window.find("import-report", 20).await?.text().await?;
    ensure!(
        report.contains('2') && report.contains("fruit.jsonl"),
        "the report names the line: {report}"
    );
    window.picture("corpora").await?;

    window.click("nav-models").await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    window.picture("models").await?;

    window.click("nav-runs").await?;
    window.click("run-row").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    window.picture("run").await?;
    window.client.clone().close().await?;
    Ok(())
}
