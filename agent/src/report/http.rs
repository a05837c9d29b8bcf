//! `/metrics` and `/healthz`, over plain HTTP on an address of the operator's choice.
//!
//! Both ask the pipeline through the same channel as the control socket, so an answer is proof
//! that it works, not that a web server does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::control::{Call, Request, Response, ask};
use super::metrics;

/// Connections served at once; further ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16;
/// From accepting a connection to the end of its one response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon the pipeline must answer to be called healthy.
const PIPELINE_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// # Errors
/// When the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address} (`metrics_listen`)"))
}

/// Serves until `shutdown` is done, then finishes the requests that are under way.
pub async fn serve(
    listener: TcpListener,
    calls: mpsc::Sender<Call>,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(calls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accept = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let connection = serve_connection(stream, router.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection.await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the metrics endpoint can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Each ends within CONNECTION_TIMEOUT.
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(stream: TcpStream, router: Router) {
    // One request a connection: a timeout over all of it then bounds slow readers and writers.
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request for metrics broke off"),
        Err(_) => tracing::debug!("a request for metrics took too long"),
    }
}

fn router(calls: mpsc::Sender<Call>) -> Router {
    Router::new()
        .route("/metrics", get(get_metrics))
        .route("/healthz", get(get_health))
        .with_state(calls)
}

async fn get_metrics(
    State(calls): State<mpsc::Sender<Call>>,
) -> Result<HttpResponse, (StatusCode, String)> {
    let snapshot = match ask(&calls, Request::Status, None, PIPELINE_TIMEOUT).await {
        Response::Status(snapshot) => *snapshot,
        other => return Err(unavailable(&other)),
    };
    let text = metrics::render(snapshot)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn get_health(
    State(calls): State<mpsc::Sender<Call>>,
) -> Result<&'static str, (StatusCode, String)> {
    match ask(&calls, Request::Ping, None, PIPELINE_TIMEOUT).await {
        Response::Pong => Ok("ok\n"),
        other => Err(unavailable(&other)),
    }
}

fn unavailable(answer: &Response) -> (StatusCode, String) {
    let reason = match answer {
        Response::Error { message, .. } => message.as_str(),
        _ => "the pipeline gave another answer than the one asked for",
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}

#[cfg(test)]
mod tests;
