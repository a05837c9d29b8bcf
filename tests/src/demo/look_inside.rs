//! What to try while the laboratory is kept.

use super::Stage;
use super::screen::Screen;
use crate::agent::METRICS;
use crate::nginx::{NAME, PORT};
use crate::programs;

/// Prints commands that work as they stand.
pub fn explain(stage: &Stage, screen: &Screen) {
    screen.heading("Look inside, from another terminal, as root");
    for (what, command) in commands(stage) {
        screen.text(&format!("\n# {what}\n{command}"));
    }
    screen.heading("Ctrl-C here ends and removes everything.");
}

fn commands(stage: &Stage) -> Vec<(&'static str, String)> {
    let Stage { lab, nginx, agent, .. } = stage;
    let ca = nginx.certs().ca.display();
    let curl = |client: usize, address: &str| {
        let namespace = lab.client(client).namespace();
        format!(
            "ip netns exec {namespace} curl --max-time 3 --cacert {ca} \
             --resolve '{NAME}:{PORT}:{address}' https://{NAME}/api/products"
        )
    };
    let program =
        programs::find("portcullis").map_or("portcullis".into(), |path| path.display().to_string());
    let config = agent.files().config.display();
    let portcullis = |words: &str| format!("{program} {words} --config {config}");
    let server = lab.server();
    vec![
        ("The innocent is served", curl(2, &server.v4().to_string())),
        ("The attacker is not", curl(0, &server.v4().to_string())),
        ("The second attacker, over IPv6, is not", curl(1, &format!("[{}]", server.v6()))),
        ("What the agent sees and does", portcullis("status")),
        ("Whom it blocks", portcullis("blocks")),
        ("What it decided, and why", portcullis("decisions")),
        ("Let the attacker in again", portcullis(&format!("unblock {}", lab.client(0).v4()))),
        (
            "Its metrics, for Prometheus",
            format!("ip netns exec {} curl http://{METRICS}/metrics", server.namespace()),
        ),
        ("Its event log, as it grows", format!("tail -f {}", agent.files().event_log.display())),
    ]
}
