//! The HTTP port: whether the process lives, whether the server is ready, what it counts, and what it saw of failovers.
//!
//! It is for probes and scrapers, so it is small: GET and HEAD of a few paths, one request a connection, few connections at a time, and
//! little time for each. What it answers costs the client ports a short look at their counters.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// Connections at a time; more are closed at once.
const CONNECTIONS: usize = 64;
/// A client has this long to send its request.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);
/// A connection lives no longer than this.
const LIFETIME: Duration = Duration::from_secs(15);
/// The largest head of a request.
const HEAD_BYTES: usize = 16 * 1024;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the port tells.
pub(crate) trait Subject: Send + Sync + 'static {
    /// Why the server is not ready; empty when it is.
    fn unready(&self) -> Vec<String>;
    /// What happened to the leaders of shards: a list in JSON.
    fn events(&self) -> String;
    /// All figures in Prometheus's text format.
    fn metrics(&self) -> String;
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, subject: Arc<dyn Subject>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Without room the connection is closed: a probe that waits in vain says as little.
                    let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
                    let subject = Arc::clone(&subject);
                    connections.spawn(async move {
                        let _place = place;
                        if tokio::time::timeout(LIFETIME, answer(stream, subject)).await.is_err() {
                            debug!("an HTTP connection took too long");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(stream: TcpStream, subject: Arc<dyn Subject>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &*subject);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "an HTTP connection was lost");
    }
}

fn respond(method: &Method, path: &str, subject: &dyn Subject) -> Response<Full<Bytes>> {
    let known = ["/healthz", "/readyz", "/metrics", "/events"].contains(&path);
    if !known {
        return text(StatusCode::NOT_FOUND, PLAIN, "not found\n".to_owned());
    }
    if ![Method::GET, Method::HEAD].contains(method) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET and HEAD only\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/healthz" => text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => match subject.unready() {
            reasons if reasons.is_empty() => text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
            reasons => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reasons.join("\n") + "\n"),
        },
        "/events" => text(StatusCode::OK, JSON, subject.events() + "\n"),
        _ => text(StatusCode::OK, PROMETHEUS, subject.metrics()),
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
