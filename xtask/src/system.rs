//! System packages: what the window needs to build, and what its tests need to run.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::step::run;

const DEBIAN: [&str; 8] = [
    "libwebkit2gtk-4.1-dev",
    "webkit2gtk-driver",
    "xvfb",
    "xauth",
    "imagemagick",
    "fonts-dejavu-core",
    "build-essential",
    "pkg-config",
];
/// What Python needs there to make environments; elsewhere it comes with it.
const PYTHON: [&str; 2] = ["python3-pip", "python3-venv"];

pub fn ensure_packages() -> Result<()> {
    if cfg!(target_os = "macos") {
        println!("    nothing to install; if the build finds no compiler, run `xcode-select --install`");
        return Ok(());
    }
    if cfg!(windows) {
        println!("    nothing to install; the build needs the Visual Studio C++ build tools and WebView2");
        return Ok(());
    }
    if succeeds("dpkg-query", &["--version"]) {
        return ensure_debian();
    }
    if succeeds("pkg-config", &["--exists", "webkit2gtk-4.1"]) {
        return Ok(());
    }
    let install = if succeeds("dnf", &["--version"]) {
        "sudo dnf install webkit2gtk4.1-devel xorg-x11-server-Xvfb ImageMagick dejavu-sans-fonts gcc-c++ pkgconf"
    } else if succeeds("pacman", &["--version"]) {
        "sudo pacman -S --needed webkit2gtk-4.1 xorg-server-xvfb imagemagick ttf-dejavu base-devel"
    } else {
        bail!("install the development files of WebKitGTK 4.1 (pkg-config name webkit2gtk-4.1), then run this again")
    };
    bail!("WebKitGTK 4.1 is missing; run `{install}`, then run this again")
}

fn ensure_debian() -> Result<()> {
    let python = match succeeds("python3", &["-c", "import ensurepip, pip"]) {
        true => &[],
        false => &PYTHON[..],
    };
    let wanted = DEBIAN.iter().chain(python);
    let missing: Vec<&str> = wanted.copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        println!("    nothing to do");
        return Ok(());
    }
    if !is_root() {
        bail!(
            "packages are missing; run `sudo apt-get install {}`, then run this again",
            missing.join(" ")
        );
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    };
    run(apt().args(["update", "--quiet"]))?;
    run(apt().args(["install", "--yes", "--quiet"]).args(missing))
}

fn is_installed(package: &str) -> bool {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output();
    output.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
