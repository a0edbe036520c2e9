package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// nodeDir is what belongs to a node on disk.
func (c *cluster) nodeDir(n int) string { return c.path(fmt.Sprintf("node%d", n)) }

// onNode makes a command that runs on a node's machine.
func onNode(machine int, argv ...string) *exec.Cmd {
	words := []string{"--target", strconv.Itoa(machine), "--net", "--mount", "--"}
	return exec.Command("nsenter", append(words, argv...)...)
}

// startNode starts a node from nothing and waits until it is Ready.
func (c *cluster) startNode(ctx context.Context, control int, client *kubernetes.Clientset, n int, size nodeSize, s state) error {
	if err := c.removeNode(n); err != nil {
		return err
	}
	if err := os.MkdirAll(c.nodeDir(n), 0o755); err != nil {
		return err
	}
	if err := c.writeNodeFiles(n, size, s); err != nil {
		return err
	}
	if err := makeCgroup(c.cgroup(n)); err != nil {
		return err
	}
	machine, err := c.startMachine(nodeRole(n, "machine"), c.nodeDir(n))
	if err != nil {
		return err
	}
	if err := connect(control, machine, n); err != nil {
		return err
	}
	if err := c.startContainerd(ctx, machine, n); err != nil {
		return err
	}
	var parts errgroup.Group
	parts.Go(func() error { return c.startKubelet(ctx, machine, client, n, size) })
	parts.Go(func() error {
		config := filepath.Join(c.nodeDir(n), "proxy.yaml")
		_, err := c.spawn(nodeRole(n, "proxy"), onNode(machine, c.tool("kube"), "kube-proxy", "--config="+config))
		return err
	})
	if err := parts.Wait(); err != nil {
		return err
	}
	return c.routeServices(control)
}

// startContainerd starts it and gives it the images that nodes of this cluster have.
func (c *cluster) startContainerd(ctx context.Context, machine, n int) error {
	role := nodeRole(n, "containerd")
	ended, err := c.spawn(role, onNode(machine, "containerd", "--config", filepath.Join(c.nodeDir(n), "containerd.toml"), "--log-level=warn"))
	if err != nil {
		return err
	}
	err = await(ctx, "containerd", startLimit, ended, func(ctx context.Context) error {
		return ctr(ctx, machine, "version")
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, c.tail(role))
	}
	archives, err := c.imagesFor(n)
	if err != nil {
		return err
	}
	for _, archive := range append([]string{c.path("pause.tar")}, archives...) {
		if err := importImage(ctx, machine, archive); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) startKubelet(ctx context.Context, machine int, client *kubernetes.Clientset, n int, size nodeSize) error {
	role, name := nodeRole(n, "kubelet"), nodeName(n)
	argv := []string{
		c.tool("kube"), "kubelet",
		"--config=" + filepath.Join(c.nodeDir(n), "kubelet.yaml"),
		"--kubeconfig=" + filepath.Join(c.nodeDir(n), "kubeconfig"),
		"--node-ip=" + nodeAddress(n), "--hostname-override=" + name,
	}
	if len(size.labels) > 0 {
		argv = append(argv, "--node-labels="+strings.Join(size.labels, ","))
	}
	// An object that a killed node left says Ready for a while.
	begun := time.Now().Truncate(time.Second)
	ended, err := c.spawn(role, onNode(machine, argv...))
	if err != nil {
		return err
	}
	err = await(ctx, name, startLimit, ended, func(ctx context.Context) error {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return usable(node, begun)
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, c.tail(role))
	}
	return nil
}

// usable tells why pods can't be placed on a node, judged by what it said since an instant.
func usable(node *corev1.Node, since time.Time) error {
	for _, taint := range node.Spec.Taints {
		if strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
			return fmt.Errorf("it has taint %s", taint.Key)
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.Status != corev1.ConditionTrue {
			return errors.New(condition.Message)
		}
		if condition.LastHeartbeatTime.Time.Before(since) {
			return errors.New("it has not said anything yet")
		}
		return nil
	}
	return errors.New("it has no condition Ready yet")
}

// routeServices leads the control plane's own traffic for services to the first node that runs.
func (c *cluster) routeServices(control int) error {
	nodes := nodesOf(c.running())
	if len(nodes) == 0 {
		return nil
	}
	return serviceRoute(control, nodes[0])
}

// removeNode ends a node as a power cut would, and removes what it had.
func (c *cluster) removeNode(n int) error {
	group := c.cgroup(n)
	wanted := func(p process) bool { return c.owns(p) && slices.Contains(nodeRoles(n), p.role) }
	if err := killAll(wanted, group); err != nil {
		return err
	}
	if err := removeCgroups(group); err != nil {
		return err
	}
	return os.RemoveAll(c.nodeDir(n))
}

// === Commands

// runningNode gives what commands on a node need; n must run, or must not.
func (c *cluster) runningNode(n int, wanted bool) (control int, client *kubernetes.Clientset, s state, err error) {
	if control, err = c.control(); err != nil {
		return
	}
	if s, err = c.load(); err != nil {
		return
	}
	if n < 0 || n >= maxNodes {
		err = fmt.Errorf("node %d: give a number from 0 to %d", n, maxNodes-1)
		return
	}
	runs := slices.Contains(nodesOf(c.running()), n)
	if wanted && !runs {
		err = fmt.Errorf("node %d does not run: bin/cluster node start %d", n, n)
		return
	}
	client, err = c.client(control, s.Token)
	return
}

func (c *cluster) nodeStart(ctx context.Context, n int, size nodeSize) error {
	unlock, err := c.lockRunning()
	if err != nil {
		return err
	}
	defer unlock()
	begun := time.Now()
	control, client, s, err := c.runningNode(n, false)
	if err != nil {
		return err
	}
	if s.ControlPlane {
		return errors.New("this cluster is a control plane only: bin/cluster down, then bin/cluster up")
	}
	if len(missing(c.running(), nodeRoles(n))) == 0 {
		say("%s runs already", nodeName(n))
		return nil
	}
	if err := c.startNode(ctx, control, client, n, size, s); err != nil {
		_ = c.removeNode(n)
		return err
	}
	say("%s is Ready after %.1f s; next: bin/cluster node cut|kill %d", nodeName(n), time.Since(begun).Seconds(), n)
	return nil
}

func (c *cluster) nodeCut(n int) error {
	control, _, _, err := c.runningNode(n, true)
	if err != nil {
		return err
	}
	if err := cut(control, n); err != nil {
		return err
	}
	say("%s is cut off; it becomes NotReady within 20 s; next: bin/cluster node heal %d", nodeName(n), n)
	return nil
}

func (c *cluster) nodeHeal(n int) error {
	control, _, _, err := c.runningNode(n, true)
	if err != nil {
		return err
	}
	if err := heal(control, n); err != nil {
		return err
	}
	say("%s is connected", nodeName(n))
	return nil
}

func (c *cluster) nodeKill(ctx context.Context, n int, deleteObject bool) error {
	unlock, err := c.lockRunning()
	if err != nil {
		return err
	}
	defer unlock()
	control, client, _, err := c.runningNode(n, !deleteObject)
	if err != nil {
		return err
	}
	if err := c.removeNode(n); err != nil {
		return err
	}
	if err := c.routeServices(control); err != nil {
		return err
	}
	if !deleteObject {
		say("%s is dead; its Node object stays until somebody deletes it: bin/cluster kubectl delete node %s", nodeName(n), nodeName(n))
		return nil
	}
	err = client.CoreV1().Nodes().Delete(ctx, nodeName(n), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot delete the Node object: %w", err)
	}
	say("%s is dead, and its Node object is deleted", nodeName(n))
	return nil
}
