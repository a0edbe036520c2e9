package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type status struct {
	Name      string        `json:"name"`
	Runs      bool          `json:"runs"`
	Mode      string        `json:"mode,omitempty"`
	API       string        `json:"api,omitempty"`
	Context   string        `json:"context,omitempty"`
	Inside    string        `json:"inside_kubeconfig,omitempty"`
	Processes []processLine `json:"processes"`
	Nodes     []nodeLine    `json:"nodes"`
	Problems  []string      `json:"problems"`
}

type processLine struct {
	Role   string `json:"role"`
	PID    int    `json:"pid"`
	Memory int64  `json:"memory_bytes"`
}

type nodeLine struct {
	Name    string `json:"name"`
	Machine bool   `json:"machine"`
	Ready   bool   `json:"ready"`
	CPU     string `json:"allocatable_cpu"`
	Memory  string `json:"allocatable_memory"`
	Pods    string `json:"allocatable_pods"`
}

// status looks at what runs and asks the API server for the rest.
func (c *cluster) status(ctx context.Context) status {
	running := c.running()
	found := status{Name: c.name, Processes: []processLine{}, Nodes: []nodeLine{}, Problems: []string{}}
	for _, role := range slices.Sorted(maps.Keys(running)) {
		found.Processes = append(found.Processes, processLine{role, running[role], memoryOf(running[role])})
	}
	s, err := c.load()
	control, runs := running[controlMachine]
	if err != nil || !runs {
		if len(running) > 0 {
			found.Problems = append(found.Problems, "only leftovers of a killed run are there: bin/cluster up or down removes them")
		}
		return found
	}
	found.Runs, found.Mode, found.Context = true, s.mode(), c.contextName()
	found.API = fmt.Sprintf("https://127.0.0.1:%d", s.Port)
	found.Inside = c.path("inside.kubeconfig")
	wanted := controlRoles(s.ControlPlane)
	for _, n := range nodesOf(running) {
		wanted = append(wanted, nodeRoles(n)...)
	}
	for _, role := range missing(running, wanted) {
		found.Problems = append(found.Problems, role+" does not run")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := c.client(control, s.Token)
	if err == nil {
		var nodes *corev1.NodeList
		if nodes, err = client.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err == nil {
			machines := nodesOf(running)
			for _, node := range nodes.Items {
				found.Nodes = append(found.Nodes, describe(node, machines))
			}
		}
	}
	if err != nil {
		found.Problems = append(found.Problems, fmt.Sprintf("the API server does not answer: %v", err))
	}
	return found
}

func describe(node corev1.Node, machines []int) nodeLine {
	has := node.Status.Allocatable
	return nodeLine{
		Name:    node.Name,
		Machine: slices.ContainsFunc(machines, func(n int) bool { return nodeName(n) == node.Name }),
		Ready:   usable(&node, time.Time{}) == nil,
		CPU:     has.Cpu().String(),
		Memory:  has.Memory().String(),
		Pods:    has.Pods().String(),
	}
}

func memoryOf(pid int) int64 {
	var size, resident int64
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	_, _ = fmt.Sscan(string(text), &size, &resident)
	return resident * int64(os.Getpagesize())
}

func (s status) print(asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(s)
	}
	if !s.Runs {
		fmt.Printf("cluster %s does not run: bin/cluster up\n", s.Name)
	} else {
		fmt.Printf("cluster %s runs (%s)\n  API server  %s, context %s\n", s.Name, s.Mode, s.API, s.Context)
	}
	for _, problem := range s.Problems {
		fmt.Printf("  PROBLEM     %s\n", problem)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(s.Processes) > 0 {
		fmt.Fprintln(table, "\nPROCESS\tPID\tMEMORY")
	}
	for _, p := range s.Processes {
		fmt.Fprintf(table, "%s\t%d\t%d MB\n", p.Role, p.PID, p.Memory/1_000_000)
	}
	if len(s.Nodes) > 0 {
		fmt.Fprintln(table, "\nNODE\tSTATE\tCPU\tMEMORY\tPODS")
	}
	for _, node := range s.Nodes {
		var words []string
		if !node.Machine {
			words = append(words, "no machine")
		}
		if node.Ready {
			words = append(words, "Ready")
		} else {
			words = append(words, "not ready")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", node.Name, strings.Join(words, ", "), node.CPU, node.Memory, node.Pods)
	}
	return table.Flush()
}
