use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::decision::Mode;
use crate::report::snapshot::Snapshot;

struct Endpoint {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn start(calls: mpsc::Sender<Call>) -> Endpoint {
    let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(serve(listener, calls, async {
        let _ = stopped.await;
    }));
    Endpoint { address, stop, task }
}

async fn request(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(head.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the server closes after its answer");
    answer
}

async fn get_path(address: SocketAddr, path: &str) -> String {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
}

/// Answers as a healthy pipeline does.
fn pipeline() -> mpsc::Sender<Call> {
    let (calls, mut queue) = mpsc::channel::<Call>(8);
    tokio::spawn(async move {
        while let Some(call) = queue.recv().await {
            assert_eq!(call.peer, None);
            let response = match call.request {
                Request::Ping => Response::Pong,
                _ => Response::Status(Box::new(Snapshot::new("9.9.9", 1, Mode::Observe))),
            };
            let _ = call.reply.send(response);
        }
    });
    calls
}

#[tokio::test]
async fn serves_metrics_and_health() {
    let endpoint = start(pipeline()).await;
    let metrics = get_path(endpoint.address, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("portcullis_build_info{version=\"9.9.9\"} 1\n"), "{metrics}");
    let health = get_path(endpoint.address, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("\r\n\r\nok\n"));
    let missing = get_path(endpoint.address, "/").await;
    assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
    let post = request(endpoint.address, "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
}

#[tokio::test]
async fn a_stopped_pipeline_is_not_healthy() {
    let (calls, queue) = mpsc::channel(1);
    drop(queue);
    let endpoint = start(calls).await;
    let health = get_path(endpoint.address, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
    assert!(health.ends_with("the agent is stopping\n"), "{health}");
}

#[tokio::test]
async fn a_pipeline_that_hangs_is_not_healthy() {
    let (calls, _queue) = mpsc::channel(1);
    let endpoint = start(calls).await;
    let health = get_path(endpoint.address, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
    assert!(health.ends_with("the pipeline did not answer within 3 s\n"), "{health}");
}

#[tokio::test]
async fn finishes_what_is_under_way_when_it_stops() {
    let (calls, mut queue) = mpsc::channel::<Call>(1);
    let endpoint = start(calls).await;
    let asking = tokio::spawn(get_path(endpoint.address, "/healthz"));
    let call = queue.recv().await.expect("the request arrives");
    endpoint.stop.send(()).expect("still serving");
    let refused = async {
        while TcpStream::connect(endpoint.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("stops listening");
    call.reply.send(Response::Pong).expect("still waited for");
    assert!(asking.await.expect("no panic").ends_with("ok\n"));
    endpoint.task.await.expect("ends");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = bind(([127, 0, 0, 1], 0).into()).await.expect("binds");
    let address = first.local_addr().expect("an address");
    let error = bind(address).await.expect_err("in use").to_string();
    assert_eq!(error, format!("can't listen on {address} (`metrics_listen`)"));
}
