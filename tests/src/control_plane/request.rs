//! One request to the Kubernetes API, in the words of its authorization: verb, resource, name.

use hyper::{Method, Uri};
use serde_json::Value;
use tokio::time::Instant;

/// What a proxy has seen of one request.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it came in.
    pub at: Instant,
    /// Which of the proxy's clients sent it.
    pub client: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// `jobs`, `pods/status`, …; the whole path of what is no resource.
    pub resource: String,
    /// The object, also of a `create`.
    pub name: Option<String>,
    /// What stands behind the `?`.
    pub query: String,
    /// What the API server answered; `None` if it was not asked, or has not answered yet.
    pub status: Option<u16>,
    /// What it said with an error.
    pub message: Option<String>,
    /// When its answer's head was there, or the proxy's own.
    pub answered: Option<Instant>,
}

// === impl Request ===

impl Request {
    pub(super) fn new(at: Instant, client: String, method: &Method, uri: &Uri, body: &[u8]) -> Self {
        let query = uri.query().unwrap_or_default().to_owned();
        let (resource, mut name) = target(uri.path());
        let verb = match *method {
            Method::GET if query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1") => "watch",
            Method::GET if name.is_none() => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        };
        if name.is_none() {
            let object = serde_json::from_slice::<Value>(body).unwrap_or_default();
            name = object.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned);
        }
        Self { at, client, verb, resource, name, query, status: None, message: None, answered: None }
    }

    /// Whether it is this.
    #[must_use]
    pub fn is(&self, verb: &str, resource: &str) -> bool {
        self.verb == verb && self.resource == resource
    }

    /// Whether the API server did what was asked for.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status < 300)
    }
}

/// Resource (with subresource) and name of a path.
fn target(path: &str) -> (String, Option<String>) {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let inner = match words[..] {
        // `/api/VERSION`, `/apis/GROUP/VERSION`; then maybe `/namespaces/NAMESPACE`.
        ["api", _, "namespaces", _, ref inner @ ..] | ["apis", _, _, "namespaces", _, ref inner @ ..]
            if !inner.is_empty() =>
        {
            inner
        }
        ["api", _, ref inner @ ..] | ["apis", _, _, ref inner @ ..] => inner,
        _ => &[],
    };
    match *inner {
        [resource] => (resource.to_owned(), None),
        [resource, name] => (resource.to_owned(), Some(name.to_owned())),
        [resource, name, subresource, ..] => (format!("{resource}/{subresource}"), Some(name.to_owned())),
        [] => (path.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &Method, uri: &str, body: &str) -> Request {
        Request::new(Instant::now(), String::new(), method, &uri.parse().unwrap(), body.as_bytes())
    }

    #[test]
    fn requests_are_named_as_authorization_names_them() {
        let named = |method: Method, uri: &str, body| {
            let Request { verb, resource, name, .. } = request(&method, uri, body);
            format!("{verb} {resource} {}", name.unwrap_or_default())
        };
        let jobs = "/apis/batch/v1/namespaces/n/jobs";
        assert_eq!(named(Method::GET, jobs, ""), "list jobs ");
        assert_eq!(named(Method::GET, &format!("{jobs}?watch=true&limit=5"), ""), "watch jobs ");
        assert_eq!(named(Method::POST, jobs, r#"{"metadata":{"name":"a-1"}}"#), "create jobs a-1");
        assert_eq!(named(Method::DELETE, &format!("{jobs}/a-1"), ""), "delete jobs a-1");
        assert_eq!(named(Method::PUT, "/api/v1/namespaces/n/configmaps/c", ""), "update configmaps c");
        assert_eq!(named(Method::PATCH, "/api/v1/namespaces/n/pods/p/status", ""), "patch pods/status p");
        assert_eq!(named(Method::GET, "/api/v1/nodes/n", ""), "get nodes n");
        assert_eq!(named(Method::GET, "/api/v1/namespaces/n", ""), "get namespaces n");
        assert_eq!(named(Method::GET, "/version", ""), "list /version ");
    }
}
