package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// nodeSize is what a node says it has.
type nodeSize struct {
	cpu, memory string // allocatable; all that the machine has if empty
	maxPods     int
	labels      []string // KEY=VALUE
	taints      []string // KEY=VALUE:EFFECT
}

const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd-opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "PAUSE"
  # Without CAP_SYS_RESOURCE every sandbox would fail.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "DIR/cni"
`

// Pods are routed, not bridged: so what a service sends back passes the rules that translate it.
const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "ptp",
    "ipMasq": false,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": "PODS"}]],
      "routes": [{"dst": "0.0.0.0/0"}],
      "dataDir": "/run/cni-addresses"
    }
  }]
}
`

// writeNodeFiles writes what a node's programs read.
func (c *cluster) writeNodeFiles(n int, size nodeSize, s state) error {
	dir := c.nodeDir(n)
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o755); err != nil {
		return err
	}
	user := "system:node:" + nodeName(n)
	if err := c.writeKubeconfig(filepath.Join(dir, "kubeconfig"), user, s.NodeTokens[user]); err != nil {
		return err
	}
	kubelet, err := c.kubeletConfig(n, size)
	if err != nil {
		return err
	}
	fill := strings.NewReplacer("PAUSE", pauseImage, "DIR", dir, "PODS", nodePods(n)).Replace
	for name, text := range map[string]string{
		"containerd.toml":   fill(containerdConfig),
		"cni/pods.conflist": fill(cniConfig),
		// kubelet wants one, even though pods get another.
		"resolv.conf": "nameserver " + controlAddress + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := writeJSON(filepath.Join(dir, "kubelet.yaml"), kubelet); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, "proxy.yaml"), map[string]any{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"mode":             "iptables",
		"hostnameOverride": nodeName(n),
		"clientConnection": map[string]any{"kubeconfig": c.path("proxy.kubeconfig")},
		// Whoever is no pod is translated, so that answers come back the same way.
		"clusterCIDR": podRange,
		"conntrack":   map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	})
}

func (c *cluster) kubeletConfig(n int, size nodeSize) (map[string]any, error) {
	reserved, err := reservation(size)
	if err != nil {
		return nil, err
	}
	taints, err := parseTaints(size.taints)
	if err != nil {
		return nil, err
	}
	none := "0%"
	config := map[string]any{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + c.cgroup(n),
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"enforceNodeAllocatable":   []string{},
		"systemReserved":           reserved,
		"clusterDNS":               []string{controlAddress},
		"clusterDomain":            "cluster.local",
		"resolvConf":               filepath.Join(c.nodeDir(n), "resolv.conf"),
		"volumePluginDir":          "/var/lib/kubelet/volume-plugins",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		// The machine's disk and memory are not the node's own: nothing is evicted or collected for them.
		"evictionHard":                map[string]string{"memory.available": none, "nodefs.available": none, "nodefs.inodesFree": none, "imagefs.available": none, "imagefs.inodesFree": none},
		"imageGCHighThresholdPercent": 100,
	}
	if size.maxPods > 0 {
		config["maxPods"] = size.maxPods
	}
	if len(taints) > 0 {
		config["registerWithTaints"] = taints
	}
	return config, nil
}

// reservation is what a node must keep back so that only what size says is left for pods.
func reservation(size nodeSize) (map[string]string, error) {
	reserved := map[string]string{}
	for name, wanted := range map[string]string{"cpu": size.cpu, "memory": size.memory} {
		if wanted == "" {
			continue
		}
		asked, err := resource.ParseQuantity(wanted)
		if err != nil {
			return nil, fmt.Errorf("node %s %q: %w", name, wanted, err)
		}
		rest, err := machineHas(name)
		if err != nil {
			return nil, err
		}
		rest.Sub(asked)
		if rest.Sign() < 0 {
			all, _ := machineHas(name)
			return nil, fmt.Errorf("node %s %s: this machine has only %s", name, wanted, all.String())
		}
		reserved[name] = rest.String()
	}
	return reserved, nil
}

// machineHas reads what kubelet reads.
func machineHas(name string) (resource.Quantity, error) {
	if name == "cpu" {
		text, err := os.ReadFile("/proc/cpuinfo")
		return *resource.NewQuantity(int64(strings.Count("\n"+string(text), "\nprocessor")), resource.DecimalSI), err
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return resource.Quantity{}, err
	}
	var kilobytes int64
	_, err = fmt.Sscanf(string(text), "MemTotal: %d kB", &kilobytes)
	return *resource.NewQuantity(kilobytes*1024, resource.BinarySI), err
}

func parseTaints(taints []string) ([]map[string]string, error) {
	var parsed []map[string]string
	for _, taint := range taints {
		left, effect, ok := strings.Cut(taint, ":")
		key, value, _ := strings.Cut(left, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("taint %q: give KEY=VALUE:EFFECT, as in dedicated=work:NoSchedule", taint)
		}
		parsed = append(parsed, map[string]string{"key": key, "value": value, "effect": effect})
	}
	return parsed, nil
}
