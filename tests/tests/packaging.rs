//! The files under agent/packaging: valid to the programs that read them, and in agreement with
//! the agent.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use portcullis::config::{self, Config, Purpose};
use serde_json::Value;

const UNIT: &str = include_str!("../../agent/packaging/portcullis.service");
const SYSUSERS: &str = include_str!("../../agent/packaging/sysusers.conf");
const MANIFEST: &str = include_str!("../../agent/packaging/kubernetes/daemonset.yaml");

/// Its version is that of the newest Kubernetes schemas it has.
const KUBERNETES_VALIDATE: &str = "kubernetes-validate==1.37.0";

/// Highest exposure level, times ten, that `systemd-analyze security` may find.
const MAX_EXPOSURE: u32 = 30;

/// Runs `command` with `input` and returns what it printed, whatever its exit status.
fn output(command: &mut Command, input: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("can't run {piped:?}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(input.as_bytes()).expect("the program reads its input");
    drop(stdin);
    child.wait_with_output().expect("the program can be waited for")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

fn must_succeed(command: &mut Command) {
    let output = output(command, "");
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

/// Installs a Debian package, which takes root.
fn install(package: &str) {
    let apt = |args: &[&str]| {
        must_succeed(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"));
    };
    apt(&["update", "-q"]);
    apt(&["install", "-qy", "--no-install-recommends", package]);
}

/// Makes sure that systemd's tools are there, once.
static SYSTEMD: LazyLock<()> = LazyLock::new(|| {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        install("systemd");
    }
});

/// The Python of an environment with kubernetes-validate, made once under target/.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(KUBERNETES_VALIDATE);
    let python = dir.join("bin/python");
    let complete = dir.join("complete");
    if complete.exists() {
        return python;
    }
    let venv = |python: &str| {
        let made = Command::new(python).args(["-m", "venv", "--clear"]).arg(&dir).output();
        made.is_ok_and(|output| output.status.success())
    };
    if !venv("python3") {
        install("python3-venv");
        assert!(venv("/usr/bin/python3"), "can't make a Python environment in {}", dir.display());
    }
    must_succeed(Command::new(&python).args(["-m", "pip", "install", "-q", KUBERNETES_VALIDATE]));
    fs::write(complete, "").expect("target/ is writable");
    python
});

fn kubernetes_validate(manifest: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.yaml");
    fs::write(&path, manifest).unwrap();
    let mut command = Command::new(&*PYTHON);
    output(command.args(["-m", "kubernetes_validate", "--strict"]).arg(path), "")
}

/// The manifest's resource of this kind.
fn resource(kind: &str) -> Value {
    const TO_JSON: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let json = output(Command::new(&*PYTHON).args(["-c", TO_JSON]), MANIFEST);
    assert!(json.status.success(), "{}", text(&json));
    let resources: Vec<Value> = serde_json::from_slice(&json.stdout).unwrap();
    let found = resources.into_iter().find(|resource| resource["kind"] == kind);
    found.unwrap_or_else(|| panic!("the manifest has no {kind}"))
}

fn container() -> Value {
    resource("DaemonSet")["spec"]["template"]["spec"]["containers"][0].clone()
}

fn manifest_config() -> Config {
    let data = &resource("ConfigMap")["data"]["portcullis.toml"];
    let text = data.as_str().expect("the ConfigMap has a portcullis.toml");
    let loaded = config::parse(text, "portcullis.toml", Purpose::Run)
        .unwrap_or_else(|invalid| panic!("{invalid}"));
    assert_eq!(loaded.warnings, []);
    loaded.config
}

/// The values of a key of the unit.
fn unit_values(key: &str) -> Vec<&'static str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

/// What systemd has to say against a unit.
fn complaints(unit: &str) -> String {
    LazyLock::force(&SYSTEMD);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("portcullis.service");
    // The program does not have to be installed for this.
    fs::write(&path, unit.replace("/usr/bin/portcullis", "/bin/true")).unwrap();
    let mut command = Command::new("systemd-analyze");
    let verified = output(command.args(["verify", "--recursive-errors=no"]).arg(&path), "");
    if verified.status.success() || !verified.stderr.is_empty() {
        text(&verified)
    } else {
        verified.status.to_string()
    }
}

#[test]
fn systemd_takes_the_unit() {
    assert_eq!(complaints(UNIT), "");
    let typo = complaints(&UNIT.replace("NotifyAccess=", "NotifyAcess="));
    assert!(typo.contains("NotifyAcess"), "{typo}");
}

#[test]
fn the_unit_exposes_little() {
    LazyLock::force(&SYSTEMD);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("portcullis.service");
    fs::write(&path, UNIT).unwrap();
    let within = |threshold: u32| {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--no-pager", "--offline=true"]);
        output(command.arg(format!("--threshold={threshold}")).arg(&path), "")
    };
    let found = within(MAX_EXPOSURE);
    assert!(found.status.success(), "{}", text(&found));
    // No unit is without any exposure, so the threshold is looked at.
    assert!(!within(0).status.success());
}

#[test]
fn the_unit_runs_as_the_user_that_is_made_for_it() {
    LazyLock::force(&SYSTEMD);
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let mut command = Command::new("systemd-sysusers");
    let made = output(command.arg("--root").arg(root.path()).arg("-"), SYSUSERS);
    assert!(made.status.success(), "{}", text(&made));
    let users = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    let [user] = unit_values("User")[..] else { panic!("the unit has no single User=") };
    assert!(users.lines().any(|line| line.starts_with(&format!("{user}:"))), "{users}");
    assert_eq!(unit_values("Group"), [user]);
}

#[test]
fn the_unit_knows_the_default_paths() {
    let config = Config::default();
    let pin_dir = config.kernel.pin_dir.to_str().unwrap();
    assert_eq!(unit_values("ReadWritePaths"), [pin_dir]);
    let prepared =
        unit_values("ExecStartPre").iter().filter(|line| line.ends_with(pin_dir)).count();
    assert_eq!(prepared, 2, "made and given to the agent's user");
    let [runtime] = unit_values("RuntimeDirectory")[..] else { panic!("no RuntimeDirectory=") };
    assert!(config.report.control_socket.starts_with(Path::new("/run").join(runtime)));
}

#[test]
fn kubernetes_takes_the_manifest() {
    let found = kubernetes_validate(MANIFEST);
    assert!(found.status.success(), "{}", text(&found));
    let typo = kubernetes_validate(&MANIFEST.replace("hostPID:", "hostPid:"));
    assert!(!typo.status.success() && text(&typo).contains("hostPid"), "{}", text(&typo));
}

#[test]
fn the_probes_ask_where_the_agent_serves() {
    let listen = manifest_config().report.metrics_listen.expect("the probes need the endpoint");
    let container = container();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["path"], "/healthz", "{probe}");
        assert_eq!(get["port"], listen.port(), "{probe}");
        assert_eq!(get["host"], listen.ip().to_string(), "{probe}");
    }
}

#[test]
fn the_manifest_mounts_what_the_agent_uses() {
    let config = manifest_config();
    let container = container();
    let mounts: Vec<&str> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["mountPath"].as_str().unwrap())
        .collect();
    let args = container["args"].as_array().unwrap();
    let config_file = args.last().and_then(Value::as_str).unwrap();
    let sources = [Path::new(config_file), &config.kernel.pin_dir, &config.report.control_socket];
    for path in sources.into_iter().chain([Path::new("/sys/kernel/btf/vmlinux")]) {
        assert!(mounts.iter().any(|mount| path.starts_with(mount)), "{path:?} in {mounts:?}");
    }
}

#[test]
fn unit_and_manifest_grant_the_same_capabilities() {
    let of_unit = |key| -> BTreeSet<String> {
        unit_values(key)
            .iter()
            .flat_map(|line| line.split_whitespace())
            .map(str::to_owned)
            .collect()
    };
    let ambient = of_unit("AmbientCapabilities");
    assert!(ambient.contains("CAP_BPF"), "{ambient:?}");
    assert_eq!(ambient, of_unit("CapabilityBoundingSet"));
    let context = container()["securityContext"].clone();
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().unwrap();
    let added = added.iter().map(|name| format!("CAP_{}", name.as_str().unwrap()));
    assert_eq!(added.collect::<BTreeSet<_>>(), ambient);
    assert_eq!(context["privileged"], false);
}
