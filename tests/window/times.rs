//! How long the window takes to show Home, and what it holds in memory. Linux only: both are read from /proc.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::driver::{PATIENCE, Window};

/// One start of the program on a home that is set up.
struct Start {
    /// From the start of the process to the first paint that shows something, which is Home.
    painted_ms: f64,
    /// Of the program and WebKit's helper processes, a shared page counted in parts.
    proportional_mb: f64,
    resident_mb: f64,
}

pub async fn cold_start() -> Result<()> {
    let window = Window::open().await?;
    window
        .holds("document.querySelector('[data-testid=ask-button]:enabled')", PATIENCE)
        .await?;
    let mut home = window.close().await?;
    let mut starts = Vec::new();
    for _ in 0..5 {
        let window = Window::open_at(home).await?;
        starts.push(measure(&window).await?);
        home = window.close().await?;
    }
    let median = |of: fn(&Start) -> f64| {
        let mut values: Vec<f64> = starts.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0], values[values.len() - 1])
    };
    for (what, (middle, least, most)) in [
        ("process start to painted Home, ms", median(|start| start.painted_ms)),
        ("proportional memory (PSS), MB", median(|start| start.proportional_mb)),
        (
            "resident memory (RSS, shared pages counted twice), MB",
            median(|start| start.resident_mb),
        ),
    ] {
        eprintln!(
            "{what}: median {middle:.0}, {least:.0} to {most:.0}, n = {}",
            starts.len()
        );
    }
    Ok(())
}

async fn measure(window: &Window) -> Result<Start> {
    window
        .holds("document.querySelector('[data-testid=ask-button]:enabled')", PATIENCE)
        .await?;
    let painted = window
        .script(
            "const [paint] = performance.getEntriesByName('first-contentful-paint');
             return paint ? performance.timeOrigin + paint.startTime : null",
        )
        .await?
        .as_f64()
        .context("this WebKit does not tell when it painted")?;
    let processes = below(window.driver_id())?;
    let program = processes.first().context("the program has ended")?;
    let painted_ms = painted - started_ms(*program)?;
    ensure!(painted_ms > 0.0, "painted {painted_ms} ms after the start");
    // Let what the start left behind settle.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let kilobytes = |field: &str| -> Result<f64> {
        let mut sum = 0.0;
        for process in &processes {
            let rollup = read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let line = rollup.lines().find_map(|line| line.strip_prefix(field));
            sum += line
                .and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok())
                .unwrap_or(0.0);
        }
        Ok(sum)
    };
    Ok(Start {
        painted_ms,
        proportional_mb: kilobytes("Pss:")? / 1000.0,
        resident_mb: kilobytes("Rss:")? / 1000.0,
    })
}

/// The processes that descend from one, parents first.
fn below(root: u32) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        if let Ok(Some(parent)) = stat(id, 1).map(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found: Vec<u32> = children.get(&root).cloned().unwrap_or_default();
    let mut at = 0;
    while let Some(id) = found.get(at) {
        found.extend(children.get(id).into_iter().flatten());
        at += 1;
    }
    Ok(found)
}

/// When a process started, in milliseconds since 1970; exact to 10 ms.
fn started_ms(id: u32) -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let up: f64 = read_to_string("/proc/uptime")?
        .split(' ')
        .next()
        .context("no uptime")?
        .parse()?;
    let ticks: f64 = stat(id, 19)?.parse()?;
    Ok((now - up + ticks / 100.0) * 1000.0)
}

/// A field of a process's `stat`, counted after the name in parentheses: 0 is the state.
fn stat(id: u32, field: usize) -> Result<String> {
    let stat = read_to_string(format!("/proc/{id}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    Ok(rest.split(' ').nth(field).context("a short stat")?.to_owned())
}
