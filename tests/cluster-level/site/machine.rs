//! The machines under the cluster: nodes that come, are cut off and die, and processes on them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::core::v1::{Event, Node, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use mayfly_tests::until;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use super::{SCRIPT_LIMIT, Site};

/// How long a node that was cut off may take to be noticed.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

/// Node 1, for one test at a time.
pub(crate) struct Machine<'a> {
    site: &'a Site,
    _turn: MutexGuard<'static, ()>,
}

/// Its name in the cluster.
pub(crate) const NODE: &str = "node-1";

// === impl Machine ===

impl<'a> Machine<'a> {
    /// Waits for its turn. There is no node 1 then.
    pub(crate) async fn absent(site: &'a Site) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::const_new(());
        let machine = Self { site, _turn: TURN.lock().await };
        machine.remove().await?;
        Ok(machine)
    }

    /// Ends it, if it is there, and removes its object.
    pub(crate) async fn remove(&self) -> Result<()> {
        self.tell(&["kill", "1", "--delete-object"]).await
    }

    /// A new node 1, Ready.
    pub(crate) async fn start(&self) -> Result<()> {
        self.start_with(&[]).await
    }

    /// The same with options.
    pub(crate) async fn start_with(&self, options: &[&str]) -> Result<()> {
        self.tell(&[&["start", "1"], options].concat()).await
    }

    /// Cuts it off, and waits until Kubernetes has noticed.
    pub(crate) async fn cut(&self) -> Result<()> {
        self.tell(&["cut", "1"]).await?;
        until("node 1 is not Ready", NOTICE_LIMIT, async || Ok(self.ready().await? != "True")).await
    }

    /// Reconnects it, and waits until Kubernetes has noticed.
    pub(crate) async fn heal(&self) -> Result<()> {
        self.tell(&["heal", "1"]).await?;
        until("node 1 is Ready again", NOTICE_LIMIT, async || Ok(self.ready().await? == "True")).await
    }

    /// Loses it as in a power cut: nobody hears of it any more, and nobody is told so. When that was.
    pub(crate) async fn kill(&self) -> Result<Instant> {
        self.tell(&["cut", "1"]).await?;
        let gone = Instant::now();
        self.tell(&["kill", "1"]).await?;
        Ok(gone)
    }

    /// Removes its object, as a cloud does with a machine that is gone.
    pub(crate) async fn forget(&self) -> Result<()> {
        let nodes = Api::<Node>::all(self.site.client.clone());
        nodes.delete(NODE, &DeleteParams::default()).await.context("delete the Node object")?;
        Ok(())
    }

    async fn tell(&self, words: &[&str]) -> Result<()> {
        let name = format!("node-{}", uuid::Uuid::now_v7().simple());
        let node = self.site.program("cluster").arg("node").args(words);
        node.run(&name, SCRIPT_LIMIT).await?.exits_with(0, Duration::ZERO).await
    }

    async fn ready(&self) -> Result<String> {
        let node = Api::<Node>::all(self.site.client.clone()).get(NODE).await?;
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
        Ok(ready.context("no condition Ready")?.status)
    }
}

// === impl Site ===

impl Site {
    /// How much CPU a worker must ask for so that two of them have room on node 0, and no third.
    pub(crate) async fn half_of_node_zero(&self) -> Result<String> {
        let node = Api::<Node>::all(self.client.clone()).get("node-0").await?;
        let allocatable = node.status.and_then(|status| status.allocatable).context("nothing allocatable")?;
        let pods = Api::<Pod>::all(self.client.clone());
        let mine =
            ListParams::default().fields("spec.nodeName=node-0,status.phase!=Succeeded,status.phase!=Failed");
        let mut free = millicores(allocatable.get("cpu"))?;
        for pod in pods.list(&mine).await? {
            for container in pod.spec.into_iter().flat_map(|spec| spec.containers) {
                let requests =
                    container.resources.and_then(|resources| resources.requests).unwrap_or_default();
                free -= millicores(requests.get("cpu"))?;
            }
        }
        // A fifth stays for what else comes.
        Ok(format!("{}m", free * 2 / 5))
    }

    /// What the autoscaler says when it makes a node for a pod (Kubernetes' cluster autoscaler, word for word).
    pub(crate) async fn announce_node(&self, pod: &str) -> Result<()> {
        let uid = Api::<Pod>::namespaced(self.client.clone(), &self.namespace).get(pod).await?.uid();
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let event: Event = serde_json::from_value(json!({
            "metadata": { "generateName": "scale-up-" },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": pod, "uid": uid,
            },
            "reason": "TriggeredScaleUp",
            "message": "pod triggered scale-up: [{workers 1->2 (max: 5)}]",
            "source": { "component": "cluster-autoscaler" },
            "type": "Normal",
            "count": 1, "firstTimestamp": now, "lastTimestamp": now,
        }))?;
        let events = Api::namespaced(self.client.clone(), &self.namespace);
        events.create(&PostParams::default(), &event).await.context("write an event")?;
        Ok(())
    }

    /// The scaler's pods that are not being deleted.
    pub(crate) async fn scalers(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let selector =
            format!("app.kubernetes.io/instance={},app.kubernetes.io/component=scaler", self.namespace);
        let pods = pods.list(&ListParams::default().labels(&selector)).await?;
        Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// kill -9, to the scaler's process; Kubernetes restarts it in its pod.
    pub(crate) async fn kill_scaler(&self) -> Result<()> {
        let pods = self.scalers().await?;
        let pod = pods.first().context("there is no scaler")?;
        let status = &pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()?.first());
        let container =
            status.and_then(|status| status.container_id.as_deref()).context("it has not started")?;
        let container = container.trim_start_matches("containerd://");
        let name = format!("kill-{}", uuid::Uuid::now_v7().simple());
        let kill = ["ctr", "0", "tasks", "kill", "--signal", "SIGKILL", container];
        let kill = self.program("cluster").args(kill);
        kill.run(&name, SCRIPT_LIMIT).await?.exits_with(0, Duration::ZERO).await
    }

    /// Deletes the scaler's pod without letting it end in order.
    pub(crate) async fn delete_scaler(&self) -> Result<()> {
        let pods = self.scalers().await?;
        let name = pods.first().context("there is no scaler")?.name_any();
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .context("delete the scaler's pod")?;
        Ok(())
    }

    /// The state record of the pool.
    pub(crate) async fn state(&self) -> Result<Value> {
        let maps =
            Api::<k8s_openapi::api::core::v1::ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        let map = maps.get(&format!("{}-state", self.namespace)).await?;
        let data = map.data.unwrap_or_default();
        let text = data.get("state.json").context("the state ConfigMap has no state.json")?;
        Ok(serde_json::from_str(text)?)
    }
}

/// A quantity of CPU in thousandths of a core.
fn millicores(quantity: Option<&Quantity>) -> Result<u64> {
    let text = quantity.map_or("0", |quantity| quantity.0.as_str());
    let (number, factor) = text.strip_suffix('m').map_or((text, 1000.0), |number| (number, 1.0));
    let number: f64 = number.parse().with_context(|| format!("quantity {text:?}"))?;
    ensure!((0.0..1e9).contains(&number), "quantity {text:?}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just now")]
    Ok((number * factor) as u64)
}
