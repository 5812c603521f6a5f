//! The window under Xvfb, spoken to through WebKit's driver.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};

const CONTROL: char = '\u{e009}';
pub const ESCAPE: char = '\u{e00c}';
pub const ENTER: char = '\u{e007}';
/// A model that is woken on a busy machine takes its time.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// Ends its process when the test does.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Window {
    pub client: Client,
    home: tempfile::TempDir,
    /// What the accessibility rules found, screen by screen.
    pub barriers: RefCell<Vec<String>>,
    driver: Process,
    _display: Process,
}

impl Window {
    pub async fn open() -> Result<Window> {
        Window::open_at(tempfile::tempdir()?).await
    }

    /// Opens the program on a home that an earlier window may have left.
    pub async fn open_at(home: tempfile::TempDir) -> Result<Window> {
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
            driver,
            _display: display,
        })
    }

    /// Closes the window and leaves its home.
    pub async fn close(self) -> Result<tempfile::TempDir> {
        self.client.close().await?;
        Ok(self.home)
    }

    /// The driver's process, whose children are the program and its helpers.
    pub fn driver_id(&self) -> u32 {
        self.driver.0.id()
    }

    pub async fn script(&self, body: &str) -> Result<Value> {
        Ok(self.client.execute(body, Vec::new()).await?)
    }

    /// Waits until a JavaScript expression holds.
    pub async fn holds(&self, expression: &str, patience: Duration) -> Result<()> {
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

    pub async fn find(&self, test_id: &str) -> Result<fantoccini::elements::Element> {
        self.holds(
            &format!("document.querySelector('[data-testid=\"{test_id}\"]')"),
            PATIENCE,
        )
        .await?;
        let selector = format!("[data-testid=\"{test_id}\"]");
        Ok(self.client.find(Locator::Css(&selector)).await?)
    }

    pub async fn click(&self, test_id: &str) -> Result<()> {
        self.find(test_id)
            .await?
            .click()
            .await
            .with_context(|| format!("cannot click `{test_id}`"))
    }

    pub async fn text(&self, test_id: &str) -> Result<String> {
        Ok(self.find(test_id).await?.text().await?)
    }

    pub async fn fill(&self, test_id: &str, text: &str) -> Result<()> {
        let field = self.find(test_id).await?;
        field.clear().await?;
        field.send_keys(text).await?;
        Ok(())
    }

    /// Sets a field of the page as a person would, whatever kind of field it is.
    pub async fn choose(&self, test_id: &str, value: &str) -> Result<()> {
        self.find(test_id).await?;
        let (test_id, value) = (json!(test_id), json!(value));
        self.script(&format!(
            "const field = document.querySelector(`[data-testid=${{{test_id}}}]`); field.value = {value};
             field.dispatchEvent(new Event('input', {{ bubbles: true }})); field.dispatchEvent(new Event('change', {{ bubbles: true }}));"
        ))
        .await?;
        Ok(())
    }

    pub async fn press(&self, keys: &str) -> Result<()> {
        for key in keys.chars() {
            let actions = KeyActions::new("keys".into())
                .then(KeyAction::Down { value: key })
                .then(KeyAction::Up { value: key });
            self.client.perform_actions(actions).await?;
        }
        Ok(())
    }

    pub async fn press_with_control(&self, key: char) -> Result<()> {
        let actions = KeyActions::new("keys".into())
            .then(KeyAction::Down { value: CONTROL })
            .then(KeyAction::Down { value: key })
            .then(KeyAction::Up { value: key })
            .then(KeyAction::Up { value: CONTROL });
        self.client.perform_actions(actions).await?;
        Ok(())
    }

    pub async fn go(&self, hash: &str, until: &str) -> Result<()> {
        self.script(&format!("location.hash = {}", json!(hash))).await?;
        self.holds(until, PATIENCE).await
    }

    pub async fn picture(&self, name: &str) -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artefacts");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.png")), self.client.screenshot().await?)?;
        Ok(())
    }

    /// Pictures of the screen in both themes. Notes what the accessibility rules object to, and whether
    /// anything sticks out of the window sideways.
    pub async fn inspect(&self, name: &str) -> Result<()> {
        for theme in ["dark", "light"] {
            // Painted, not only set: two frames later, and what fades in has come. Spinners never end.
            let body = format!(
                "const done = arguments[arguments.length - 1]; document.documentElement.dataset.theme = '{theme}';
                 const ends = (one) => one.effect.getComputedTiming().endTime < 5000;
                 const settled = () => Promise.allSettled(document.getAnimations().filter(ends).map((one) => one.finished));
                 requestAnimationFrame(() => requestAnimationFrame(() => settled().then(() => done(true))));"
            );
            // WebKit's driver has lost such an answer once in many hundreds; waiting twice changes nothing.
            if self.client.execute_async(&body, Vec::new()).await.is_err() {
                self.client.execute_async(&body, Vec::new()).await?;
            }
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
    pub async fn listen(&self) -> Result<()> {
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

    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.home.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }
}
