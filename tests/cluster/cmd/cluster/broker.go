package main

import "github.com/spf13/cobra"

func brokerCommand(on maker) *cobra.Command {
	return &cobra.Command{Use: "broker", Hidden: true}
}
