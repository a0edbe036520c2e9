package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// cluster is one of possibly several on this machine.
type cluster struct {
	name  string
	cache string // everything of ours on disk
	dir   string // of this cluster
	tools string // the programs
}

// state is what the kernel does not remember for us.
type state struct {
	ControlPlane bool     `json:"control_plane"`
	Port         int      `json:"port"`
	User         userFile `json:"user"`
	// Token of the admin.
	Token string `json:"token"`
	// NodeTokens by user.
	NodeTokens map[string]string `json:"node_tokens"`
}

// Names are parts of cgroup names, where a dash separates.
var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

func newCluster(name string) (*cluster, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("cluster name %q: give up to 20 lower-case letters and digits", name)
	}
	cache, tools := os.Getenv("MAYFLY_CACHE"), os.Getenv("MAYFLY_CLUSTER_TOOLS")
	if !filepath.IsAbs(cache) || !filepath.IsAbs(tools) {
		return nil, errors.New("MAYFLY_CACHE and MAYFLY_CLUSTER_TOOLS must be absolute paths: run bin/cluster, which sets them")
	}
	return &cluster{name: name, cache: cache, dir: filepath.Join(cache, "clusters", name), tools: tools}, nil
}

func (c *cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

func (c *cluster) tool(name string) string { return filepath.Join(c.tools, name) }
func (c *cluster) contextName() string     { return "mayfly-" + c.name }
func (c *cluster) cgroup(n int) string     { return fmt.Sprintf("mayfly-%s-%d", c.name, n) }
func (c *cluster) cgroups() string         { return "mayfly-" + c.name + "-*" }

func (c *cluster) load() (state, error) {
	var s state
	err := readJSON(c.path("cluster.json"), &s)
	return s, err
}

func (c *cluster) save(s state) error { return writeJSON(c.path("cluster.json"), s) }

func (c *cluster) lock() (func(), error) { return lock(c.dir + ".lock") }

// lockRunning locks only a cluster that runs: commands on one that does not leave nothing behind.
func (c *cluster) lockRunning() (func(), error) {
	if _, err := c.control(); err != nil {
		return nil, err
	}
	return c.lock()
}

// === What runs

const (
	controlMachine = "control/machine"
	forwarderRole  = "control/forwarder"
)

// running are the pids of our processes by role; children that share a role are left out.
func (c *cluster) running() map[string]int {
	found := map[string]int{}
	for _, p := range processes(c.owns) {
		if leader, err := unix.Getsid(p.pid); err == nil && leader == p.pid {
			found[p.role] = p.pid
		}
	}
	return found
}

func (c *cluster) owns(p process) bool { return p.dir == c.dir }

// namesake finds a cluster of the same name that another cache directory owns.
func (c *cluster) namesake() error {
	others := processes(func(p process) bool { return filepath.Base(p.dir) == c.name && p.dir != c.dir })
	if len(others) == 0 {
		return nil
	}
	cache := filepath.Dir(filepath.Dir(others[0].dir))
	return fmt.Errorf("cluster %s already runs from another cache: MAYFLY_CACHE=%s bin/cluster down, or choose another --name", c.name, cache)
}

// control is the pid of the machine that the control plane runs on.
func (c *cluster) control() (int, error) {
	pid, ok := c.running()[controlMachine]
	if !ok {
		return 0, fmt.Errorf("cluster %s does not run: start it with bin/cluster up", c.name)
	}
	return pid, nil
}

// inside tells whether we run in the cluster's own network.
func (c *cluster) inside() bool {
	pid, err := c.control()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/self/ns/net")
	return err == nil && os.SameFile(ours, theirs)
}

// outside refuses commands that need the machine's own network.
func (c *cluster) outside() error {
	if c.inside() {
		return errors.New("this is the inside of the cluster's network (bin/cluster exec or shell): leave it first")
	}
	return nil
}

// client talks to the API server from inside its network.
func (c *cluster) client(control int, token string) (*kubernetes.Clientset, error) {
	address := net.JoinHostPort(controlAddress, apiPort)
	return kubernetes.NewForConfig(&rest.Config{
		Host:            "https://" + address,
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.path("pki", "ca.crt")},
		Timeout:         10 * time.Second,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialIn(ctx, control, address)
		},
	})
}

// nodeRoles are the processes of a node.
func nodeRoles(n int) []string {
	var roles []string
	for _, part := range []string{"machine", "containerd", "kubelet", "proxy"} {
		roles = append(roles, nodeRole(n, part))
	}
	return roles
}

func nodeRole(n int, part string) string { return fmt.Sprintf("node%d/%s", n, part) }
func nodeName(n int) string              { return fmt.Sprintf("node-%d", n) }

// nodesOf are the numbers of the nodes that have a machine.
func nodesOf(running map[string]int) []int {
	var nodes []int
	for n := range maxNodes {
		if _, ok := running[nodeRole(n, "machine")]; ok {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// missing are the roles that a cluster should have and has not.
func missing(running map[string]int, roles []string) []string {
	var absent []string
	for _, role := range roles {
		if _, ok := running[role]; !ok {
			absent = append(absent, role)
		}
	}
	return absent
}

func say(format string, args ...any) {
	fmt.Fprintln(os.Stderr, strings.TrimRight(fmt.Sprintf(format, args...), "\n"))
}
