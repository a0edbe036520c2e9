// cluster runs a real Kubernetes on this machine, without Docker and without a virtual machine: its programs as
// ordinary processes, in network namespaces of their own. Run it by bin/cluster, which builds it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		if ctx.Err() != nil {
			say("cluster: interrupted: %v", err)
			os.Exit(130)
		}
		say("cluster: %v", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	name := os.Getenv("MAYFLY_CLUSTER")
	if name == "" {
		name = "mayfly"
	}
	all := &cobra.Command{
		Use:           "cluster",
		Short:         "A real Kubernetes on this machine, without Docker and without a virtual machine",
		SilenceErrors: true,
		SilenceUsage:  true,
		// --name counts also before commands that leave their flags to somebody else.
		TraverseChildren: true,
	}
	all.PersistentFlags().StringVar(&name, "name", name, "which cluster, also by MAYFLY_CLUSTER; several may run side by side")
	// on makes what a command does from a method of the cluster.
	on := func(do func(*cluster, *cobra.Command, []string) error) func(*cobra.Command, []string) error {
		return func(command *cobra.Command, args []string) error {
			c, err := newCluster(name)
			if err != nil {
				return err
			}
			return do(c, command, args)
		}
	}
	all.AddCommand(
		upCommand(on),
		downCommand(on),
		statusCommand(on),
		nodeCommand(on),
		loadCommand(on),
		brokerCommand(on),
		&cobra.Command{
			Use:     "exec -- COMMAND [ARGUMENT…]",
			Short:   "Run a command in the cluster's network, with its DNS and KUBECONFIG; exits with its code",
			Example: "  bin/cluster exec -- curl -k https://kubernetes.default.svc/version",
			Args:    cobra.MinimumNArgs(1),
			RunE:    on(func(c *cluster, _ *cobra.Command, args []string) error { return c.exec(args) }),
		},
		&cobra.Command{
			Use:     "shell",
			Short:   "A shell in the cluster's network, with its DNS and KUBECONFIG",
			Example: "  bin/cluster shell",
			Args:    cobra.NoArgs,
			RunE: on(func(c *cluster, _ *cobra.Command, _ []string) error {
				shell := os.Getenv("SHELL")
				if shell == "" {
					shell = "/bin/sh"
				}
				say("this shell is inside the network of cluster %s; exit leaves it", c.name)
				return c.exec([]string{shell})
			}),
		},
		&cobra.Command{
			Use:                "kubectl ARGUMENT…",
			Short:              "kubectl for this cluster",
			Example:            "  bin/cluster kubectl get pods --all-namespaces",
			DisableFlagParsing: true,
			RunE:               on(func(c *cluster, _ *cobra.Command, args []string) error { return c.kubectl(args) }),
		},
		&cobra.Command{
			Use:                "ctr NODE ARGUMENT…",
			Short:              "containerd's client on a node",
			Example:            "  bin/cluster ctr 0 images ls",
			DisableFlagParsing: true,
			RunE:               on(func(c *cluster, _ *cobra.Command, args []string) error { return c.ctr(args) }),
		},
		&cobra.Command{
			Use:     "env",
			Short:   "Print exports of KUBECONFIG and PATH for a shell",
			Example: `  eval "$(bin/cluster env)"`,
			Args:    cobra.NoArgs,
			RunE:    on(func(c *cluster, _ *cobra.Command, _ []string) error { return c.env() }),
		},
		&cobra.Command{
			Use: "machine", Hidden: true,
			RunE: func(_ *cobra.Command, args []string) error { return machine(args) },
		},
		&cobra.Command{
			Use: "forward", Hidden: true, Args: cobra.ExactArgs(2),
			RunE: func(_ *cobra.Command, args []string) error { return forward(args) },
		},
	)
	return all
}

type maker func(func(*cluster, *cobra.Command, []string) error) func(*cobra.Command, []string) error

func upCommand(on maker) *cobra.Command {
	var options upOptions
	up := &cobra.Command{
		Use:   "up",
		Short: "Start the cluster: control plane, DNS and node 0",
		Long:  "Start the cluster. Does nothing if it runs; replaces what a killed run has left.",
		Example: "  bin/cluster up\n" +
			"  bin/cluster up --node-cpu 1 --node-label pool=small\n" +
			"  bin/cluster --name tests up --control-plane --kubeconfig /tmp/config",
		Args: cobra.NoArgs,
		RunE: on(func(c *cluster, command *cobra.Command, _ []string) error { return c.up(command.Context(), options) }),
	}
	up.Flags().BoolVar(&options.controlPlane, "control-plane", false, "no nodes and no DNS: for tests that play kubelet themselves")
	up.Flags().StringVar(&options.kubeconfig, "kubeconfig", "", "write this file instead of adding a context to yours")
	sizeFlags(up, &options.node)
	return up
}

func sizeFlags(command *cobra.Command, size *nodeSize) {
	command.Flags().StringVar(&size.cpu, "node-cpu", "", "allocatable cores, as in 1500m (default all)")
	command.Flags().StringVar(&size.memory, "node-memory", "", "allocatable memory, as in 2Gi (default all)")
	command.Flags().IntVar(&size.maxPods, "max-pods", 0, "how many pods the node takes (default 110)")
	command.Flags().StringSliceVar(&size.labels, "node-label", nil, "KEY=VALUE, several times")
	command.Flags().StringSliceVar(&size.taints, "node-taint", nil, "KEY=VALUE:EFFECT, several times")
}

func downCommand(on maker) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End the cluster and remove all that belongs to it",
		Example: "  bin/cluster down",
		Args:    cobra.NoArgs,
		RunE:    on(func(c *cluster, _ *cobra.Command, _ []string) error { return c.down() }),
	}
}

func statusCommand(on maker) *cobra.Command {
	var output string
	command := &cobra.Command{
		Use:     "status",
		Short:   "Tell what runs",
		Example: "  bin/cluster status\n  bin/cluster status --output json",
		Args:    cobra.NoArgs,
		RunE: on(func(c *cluster, command *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("--output %s: only json is known", output)
			}
			return c.status(command.Context()).print(output == "json")
		}),
	}
	command.Flags().StringVarP(&output, "output", "o", "", "json")
	return command
}

func nodeCommand(on maker) *cobra.Command {
	var size nodeSize
	var deleteObject bool
	numbered := func(do func(*cluster, context.Context, int) error) func(*cobra.Command, []string) error {
		return on(func(c *cluster, command *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 0 || n >= maxNodes {
				return fmt.Errorf("node %q: give a number from 0 to %d", args[0], maxNodes-1)
			}
			return do(c, command.Context(), n)
		})
	}
	node := &cobra.Command{Use: "node", Short: "Start, cut off, reconnect or kill a node"}
	start := &cobra.Command{
		Use:     "start N",
		Short:   "Start a new, empty node N and wait until it is Ready",
		Example: "  bin/cluster node start 1 --node-cpu 1",
		Args:    cobra.ExactArgs(1),
		RunE:    numbered(func(c *cluster, ctx context.Context, n int) error { return c.nodeStart(ctx, n, size) }),
	}
	sizeFlags(start, &size)
	kill := &cobra.Command{
		Use:     "kill N",
		Short:   "Lose node N as in a power cut",
		Long:    "Lose node N as in a power cut: its processes and pods are killed, its disk is gone. The Node object stays.",
		Example: "  bin/cluster node kill 1 --delete-object",
		Args:    cobra.ExactArgs(1),
		RunE:    numbered(func(c *cluster, ctx context.Context, n int) error { return c.nodeKill(ctx, n, deleteObject) }),
	}
	kill.Flags().BoolVar(&deleteObject, "delete-object", false, "delete the Node object, too, as a cloud does with a machine that is gone")
	node.AddCommand(
		start,
		&cobra.Command{
			Use:     "cut N",
			Short:   "Cut node N off from the network; its pods go on",
			Example: "  bin/cluster node cut 1",
			Args:    cobra.ExactArgs(1),
			RunE:    numbered(func(c *cluster, _ context.Context, n int) error { return c.nodeCut(n) }),
		},
		&cobra.Command{
			Use:     "heal N",
			Short:   "Reconnect node N",
			Example: "  bin/cluster node heal 1",
			Args:    cobra.ExactArgs(1),
			RunE:    numbered(func(c *cluster, _ context.Context, n int) error { return c.nodeHeal(n) }),
		},
		kill,
	)
	return node
}

func loadCommand(on maker) *cobra.Command {
	only := -1
	load := &cobra.Command{
		Use:     "load ARCHIVE…",
		Short:   "Give images to all nodes, also those that start later",
		Long:    "Give images (OCI archives that name them by " + nameAnnotation + ") to all nodes, also those that start later.",
		Example: "  bin/cluster load scaler.tar worker.tar\n  bin/cluster load --node 0 broker.tar",
		Args:    cobra.MinimumNArgs(1),
		RunE: on(func(c *cluster, command *cobra.Command, args []string) error {
			return c.loadImages(command.Context(), args, only)
		}),
	}
	load.Flags().IntVar(&only, "node", -1, "only to this node")
	return load
}

// === Commands that become another program

// exec becomes a command in the cluster's network.
func (c *cluster) exec(argv []string) error {
	control, err := c.control()
	if err != nil {
		return err
	}
	words := []string{"nsenter", "--target", strconv.Itoa(control), "--net", "--"}
	if _, err := os.Stat(c.path("resolv.conf")); err == nil && !c.inside() {
		// Where /etc/resolv.conf is missing, the command goes without names.
		script := `place=$(readlink -f /etc/resolv.conf); [ ! -f "$place" ] || mount --bind "$0" "$place"; exec "$@"`
		words = append(words, "unshare", "--mount", "--", "sh", "-c", script, c.path("resolv.conf"))
	}
	return become(append(words, argv...), "KUBECONFIG="+c.path("inside.kubeconfig"), "MAYFLY_CLUSTER="+c.name,
		"KUBECACHEDIR="+c.path("kubectl-cache"), "PATH="+c.tools+":"+os.Getenv("PATH"))
}

func (c *cluster) kubectl(args []string) error {
	if _, err := c.control(); err != nil {
		return err
	}
	return become(append([]string{c.tool("kubectl")}, args...), c.kubectlEnvironment()...)
}

// kubectlEnvironment lets kubectl reach the cluster from where we are, and keep what it learns with the cluster.
func (c *cluster) kubectlEnvironment() []string {
	config := c.path("kubeconfig")
	if c.inside() {
		config = c.path("inside.kubeconfig")
	}
	return []string{"KUBECONFIG=" + config, "KUBECACHEDIR=" + c.path("kubectl-cache")}
}

func (c *cluster) ctr(args []string) error {
	if len(args) == 0 {
		return errors.New("ctr: say on which node, as in bin/cluster ctr 0 images ls")
	}
	machine, ok := c.running()["node"+args[0]+"/machine"]
	if !ok {
		return fmt.Errorf("node %s does not run: bin/cluster node start %s", args[0], args[0])
	}
	return become(append(onNode(machine, "ctr", "--namespace=k8s.io").Args, args[1:]...))
}

func (c *cluster) env() error {
	s, err := c.load()
	if err != nil {
		return fmt.Errorf("cluster %s does not run: start it with bin/cluster up", c.name)
	}
	config := c.path("kubeconfig")
	if s.User.Own {
		config = s.User.Path
	}
	fmt.Printf("export KUBECONFIG='%s'\nexport MAYFLY_CLUSTER='%s'\nexport PATH='%s':\"$PATH\"\n", config, c.name, c.tools)
	return nil
}

// become replaces this process by a command, with additions to its environment.
func become(argv []string, additions ...string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	for _, addition := range additions {
		name, value, _ := strings.Cut(addition, "=")
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return fmt.Errorf("cannot run %s: %w", path, syscall.Exec(path, argv, os.Environ()))
}
