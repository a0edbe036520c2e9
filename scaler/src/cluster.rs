//! The Kubernetes API server: every call has a deadline, there are never too many, and the errors tell what is
//! certain.

mod pace;
#[cfg(test)]
pub(crate) mod tests;
use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Request, StatusCode, header::RETRY_AFTER};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Client, Resource,
    api::{DeleteParams, GetParams, ListParams, PostParams},
    client::Body,
    core::{ObjectList, Status},
};
use mayfly_service::{DeadlineExceeded, deadline};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::JoinSet, time::Instant};

use self::pace::Pace;

/// The limit of a read.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// A read that got no answer for this long is sent once more, on another connection: one that hangs must not
/// hide that the API server is back.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// The limit of a write.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// The limit of connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long to leave an overloaded API server alone, unless it says so itself …
const BUSY: Duration = Duration::from_secs(1);
/// … and at most.
const LONGEST_BUSY: Duration = Duration::from_secs(30);

/// One namespace of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    /// When an overloaded API server may be asked again.
    busy_until: Arc<Mutex<Option<Instant>>>,
    pace: Arc<Pace>,
}

/// Why there is no cluster to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No configuration.
    #[error(
        "no Kubernetes cluster is known ({0}); run in a pod with a service account, or give a kubeconfig \
         (KUBECONFIG, or ~/.kube/config)"
    )]
    Unconfigured(Box<kube::config::InferConfigError>),
    /// A configuration that cannot be used.
    #[error("the Kubernetes client cannot be set up")]
    Unusable(#[source] kube::Error),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A definite no: nothing was done.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// No proper answer: it may have been done.
    #[error("no answer from the API server")]
    Unanswered(#[source] Box<dyn Error + Send + Sync>),
    /// No answer in time: it may have been done.
    #[error(transparent)]
    Deadline(#[from] DeadlineExceeded),
    /// Not even asked: the API server is overloaded and wants to be left alone.
    #[error("the API server is overloaded and asked to be left alone for {0:?}")]
    Busy(Duration),
}

// === impl Cluster ===

impl Cluster {
    /// The cluster that this pod runs in, or the kubeconfig's; its own namespace unless one is given. Nothing
    /// is sent yet.
    ///
    /// # Errors
    /// When neither is configured.
    pub async fn infer(namespace: Option<&str>) -> Result<Self, ConnectError> {
        let config = kube::Config::infer().await.map_err(|error| ConnectError::Unconfigured(error.into()))?;
        Self::configured(config, namespace)
    }

    /// The cluster that `config` describes.
    fn configured(mut config: kube::Config, namespace: Option<&str>) -> Result<Self, ConnectError> {
        // The loop is the retry: one that is hidden here would send a POST twice.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_LIMIT);
        let client = Client::try_from(config).map_err(ConnectError::Unusable)?;
        let namespace = namespace.unwrap_or_else(|| client.default_namespace()).to_owned();
        Ok(Self { client, namespace, busy_until: Arc::default(), pace: Arc::default() })
    }

    /// Another namespace of the same cluster, within the same limits.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self.clone() }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether what has time until later may be asked now, without making a launch wait for its turn.
    #[must_use]
    pub fn has_leisure(&self) -> bool {
        self.pace.has_leisure()
    }

    /// Reads one object.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<K: Kind>(&self, what: &'static str, name: &str) -> Result<K, CallError> {
        self.get_as::<K, K>(what, name).await
    }

    /// Reads one object as `T`: with every field, known here or not, for example.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get_as<K: Kind, T: DeserializeOwned + Send + 'static>(
        &self,
        what: &'static str,
        name: &str,
    ) -> Result<T, CallError> {
        self.read(what, self.path::<K>().get(name, &GetParams::default())).await
    }

    /// Lists objects, as they are now: no cache answers.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn list<K: Kind>(&self, what: &'static str, which: &ListParams) -> Result<Vec<K>, CallError> {
        let list: ObjectList<K> = self.read(what, self.path::<K>().list(which)).await?;
        Ok(list.items)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn create<K: Kind>(&self, what: &'static str, object: &impl Serialize) -> Result<K, CallError> {
        let body = serde_json::to_vec(object).map_err(|error| CallError::Unanswered(error.into()))?;
        self.write(what, self.path::<K>().create(&PostParams::default(), body)).await
    }

    /// Replaces an object, if its `resourceVersion` is still the stored one's.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn replace<K: Kind>(&self, what: &'static str, name: &str, object: &K) -> Result<K, CallError> {
        let body = serde_json::to_vec(object).map_err(|error| CallError::Unanswered(error.into()))?;
        self.write(what, self.path::<K>().replace(name, &PostParams::default(), body)).await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn delete<K: Kind>(
        &self,
        what: &'static str,
        name: &str,
        how: &DeleteParams,
    ) -> Result<(), CallError> {
        // The answer is the object or a status; nobody needs either.
        self.write::<serde::de::IgnoredAny>(what, self.path::<K>().delete(name, how)).await.map(drop)
    }

    /// Creates an object that belongs to no namespace, such as a question about permissions.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn ask<K>(&self, what: &'static str, question: &K) -> Result<K, CallError>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Send + 'static,
    {
        let body = serde_json::to_vec(question).map_err(|error| CallError::Unanswered(error.into()))?;
        let path = kube::core::Request::new(K::url_path(&(), None));
        self.write(what, path.create(&PostParams::default(), body)).await
    }

    fn path<K: Kind>(&self) -> kube::core::Request {
        kube::core::Request::new(K::url_path(&(), Some(&self.namespace)))
    }

    async fn read<T: DeserializeOwned + Send + 'static>(
        &self,
        what: &'static str,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, CallError> {
        let request = request.map_err(|error| CallError::Unanswered(error.into()))?;
        let answered = async {
            // Dropped with everything in it, which closes the connections that did not answer.
            let mut tries = JoinSet::new();
            loop {
                let (cluster, request) = (self.clone(), request.clone());
                tries.spawn(async move {
                    tokio::time::sleep(cluster.pace.turn()).await;
                    cluster.send(request).await
                });
                if let Ok(Some(answer)) = tokio::time::timeout(READ_AGAIN, tries.join_next()).await {
                    return answer.map_err(|panic| CallError::Unanswered(panic.into())).flatten();
                }
            }
        };
        deadline(what, READ_LIMIT, answered).await?
    }

    async fn write<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, CallError> {
        let request = request.map_err(|error| CallError::Unanswered(error.into()))?;
        // What is decided does not wait for its turn; what is asked next does.
        self.pace.turn();
        deadline(what, WRITE_LIMIT, self.send(request)).await?
    }

    async fn send<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<T, CallError> {
        // The client's errors repeat their causes; the cause itself is told once.
        let unanswered = |error: kube::Error| match error {
            kube::Error::Service(cause) => CallError::Unanswered(cause),
            other => CallError::Unanswered(other.into()),
        };
        if let Some(left) = self.busy_for() {
            return Err(CallError::Busy(left));
        }
        let answer = self.client.send(request.map(Body::from)).await.map_err(unanswered)?;
        let code = answer.status();
        if code == StatusCode::TOO_MANY_REQUESTS {
            let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            self.leave_alone(asked);
        }
        let bytes = answer.into_body().collect_bytes().await.map_err(unanswered)?;
        if code.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| CallError::Unanswered(error.into()));
        }
        Err(CallError::of(code, &bytes))
    }

    fn busy_for(&self) -> Option<Duration> {
        let until = *self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    /// Asks nothing for as long as the header `Retry-After` says.
    fn leave_alone(&self, retry_after: Option<&str>) {
        let asked = retry_after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        let until = Instant::now() + asked.unwrap_or(BUSY).min(LONGEST_BUSY);
        *self.busy_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// A kind of object that lives in a namespace.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Serialize
    + DeserializeOwned
    + Send
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + Send
        + 'static
{
}

// === impl CallError ===

impl CallError {
    /// What an answer means that is no success.
    fn of(code: StatusCode, body: &[u8]) -> Self {
        let text = || String::from_utf8_lossy(body).trim().chars().take(500).collect::<String>();
        let mut status: Status =
            serde_json::from_slice(body).unwrap_or_else(|_| Status::failure(&text(), "Unexplained"));
        // Not every proxy on the way says it in the body, too.
        status.code = code.as_u16();
        let definite = code.is_client_error()
            && !matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if definite {
            return Self::Refused(status.boxed());
        }
        Self::Unanswered(format!("{code}: {}", status.message).into())
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_not_found())
    }

    /// Whether the object exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_already_exists())
    }

    /// Whether the object was changed meanwhile, or is another one.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_conflict())
    }

    /// Whether we may not do that.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(status) if matches!(status.code, 401 | 403))
    }

    /// Whether a quota of the namespace is exhausted.
    #[must_use]
    pub fn is_exceeded_quota(&self) -> bool {
        matches!(self, Self::Refused(status) if status.is_forbidden() && status.message.contains("exceeded quota"))
    }
}
