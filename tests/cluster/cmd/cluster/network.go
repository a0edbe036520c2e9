package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// All addresses are of 198.18.0.0/15, which belongs to no network ("benchmarking"), and exist only inside network
// namespaces of our own, without a link to the machine's network: nothing can leave. Each cluster has the same ones.
//
//	control   198.18.0.1, at bridge lan0: control plane, DNS, and whoever runs `cluster exec`
//	node N    198.18.0.10+N at its link0, whose other end nodeN is a port of lan0; pods 198.18.128+N.0/24
//	services  198.19.0.0/24
const (
	everything     = "198.18.0.0/15"
	controlAddress = "198.18.0.1"
	podRange       = "198.18.128.0/17"
	serviceRange   = "198.19.0.0/24"
	apiService     = "198.19.0.1"
	apiPort        = "6443"
)

func nodeAddress(n int) string { return fmt.Sprintf("198.18.0.%d", 10+n) }
func nodePods(n int) string    { return fmt.Sprintf("198.18.%d.0/24", 128+n) }

// ip runs commands of ip(8), one a line, in the network namespace of a process.
func ip(pid int, commands ...string) error {
	command := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--net", "--", "ip", "-batch", "-")
	command.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %s: %w", strings.TrimSpace(string(output)), err)
	}
	return nil
}

// within makes a command that runs in the network namespace of a process.
func within(pid int, argv ...string) *exec.Cmd {
	words := []string{"--target", strconv.Itoa(pid), "--net", "--"}
	return exec.Command("nsenter", append(words, argv...)...)
}

// controlNetwork makes the network of the control plane.
func controlNetwork(pid int) error {
	return ip(pid,
		"link set lo up",
		"link add lan0 type bridge",
		"address add "+controlAddress+"/24 dev lan0",
		"link set lan0 up",
		// Programs look at the default route to learn the machine's address; it leads nowhere.
		"route add default dev lan0",
	)
}

// connect makes the link between the control plane and a node's new namespace.
func connect(control, node, n int) error {
	port := fmt.Sprintf("node%d", n)
	err := ip(control, fmt.Sprintf("link add %s type veth peer name link0 netns %d", port, node))
	if err != nil {
		return err
	}
	err = ip(node,
		"link set lo up",
		"address add "+nodeAddress(n)+"/24 dev link0",
		"link set link0 up",
		"route add default via "+controlAddress,
	)
	if err != nil {
		return err
	}
	return heal(control, n)
}

// heal brings a node's link up, and the route to its pods.
func heal(control, n int) error {
	port := fmt.Sprintf("node%d", n)
	return ip(control,
		"link set "+port+" master lan0 up",
		fmt.Sprintf("route replace %s via %s", nodePods(n), nodeAddress(n)),
	)
}

func cut(control, n int) error {
	return ip(control, fmt.Sprintf("link set node%d down", n))
}

// serviceRoute leads the control plane's own traffic for services to a node, which translates it.
func serviceRoute(control, n int) error {
	return ip(control, fmt.Sprintf("route replace %s via %s", serviceRange, nodeAddress(n)))
}

// dialIn connects from inside the network namespace of a process.
func dialIn(ctx context.Context, pid int, address string) (net.Conn, error) {
	type outcome struct {
		conn net.Conn
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, since no other may run in that namespace.
		runtime.LockOSThread()
		namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			done <- outcome{err: err}
			return
		}
		defer namespace.Close()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- outcome{err: err}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		done <- outcome{conn, err}
	}()
	result := <-done
	return result.conn, result.err
}
