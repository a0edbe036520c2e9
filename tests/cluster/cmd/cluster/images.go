package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

const pauseImage = "mayfly.test/pause:1"

// Archives of images that nodes of this cluster have are kept below images/all and images/nodeN.
func (c *cluster) imagesFor(n int) ([]string, error) {
	all, err := filepath.Glob(c.path("images", "all", "*.tar"))
	if err != nil {
		return nil, err
	}
	own, err := filepath.Glob(c.path("images", fmt.Sprintf("node%d", n), "*.tar"))
	return append(all, own...), err
}

// ctr runs containerd's client on a node's machine.
func ctr(ctx context.Context, machine int, argv ...string) error {
	command := onNode(machine, append([]string{"ctr", "--namespace=k8s.io"}, argv...)...)
	command = exec.CommandContext(ctx, command.Path, command.Args[1:]...)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %s: %w", argv[0], strings.TrimSpace(string(output)), err)
	}
	return nil
}

func importImage(ctx context.Context, machine int, archive string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := ctr(ctx, machine, "images", "import", archive); err != nil {
		return fmt.Errorf("cannot import %s: %w", archive, err)
	}
	return nil
}

// loadImages gives images to the nodes: one of them, or all (only < 0), also those that start later.
func (c *cluster) loadImages(ctx context.Context, archives []string, only int) error {
	unlock, err := c.lockRunning()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := c.control(); err != nil {
		return err
	}
	running := c.running()
	place := c.path("images", "all")
	if only >= 0 {
		place = c.path("images", fmt.Sprintf("node%d", only))
	}
	if err := os.MkdirAll(place, 0o755); err != nil {
		return err
	}
	for _, archive := range archives {
		begun := time.Now()
		names, err := imageNames(archive)
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		key := sha256.Sum256([]byte(strings.Join(names, " ")))
		kept := filepath.Join(place, hex.EncodeToString(key[:8])+".tar")
		if err := keepFile(archive, kept); err != nil {
			return err
		}
		given := 0
		for _, n := range nodesOf(running) {
			if only >= 0 && n != only {
				continue
			}
			if err := importImage(ctx, running[nodeRole(n, "machine")], kept); err != nil {
				return err
			}
			given++
		}
		say("%s: on %d nodes after %.1f s", strings.Join(names, ", "), given, time.Since(begun).Seconds())
	}
	return nil
}

// keepFile makes a copy that shares the content where the file system can: archives are replaced, never written to.
func keepFile(from, to string) error {
	temporary := to + ".new"
	if err := removeIfThere(temporary); err != nil {
		return err
	}
	if err := os.Link(from, temporary); err != nil {
		source, err := os.Open(from)
		if err != nil {
			return err
		}
		defer source.Close()
		target, err := os.Create(temporary)
		if err != nil {
			return err
		}
		_, err = io.Copy(target, source)
		if err = errors.Join(err, target.Close()); err != nil {
			return err
		}
	}
	return os.Rename(temporary, to)
}

// === The format

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

const nameAnnotation = "io.containerd.image.name"

// imageNames reads the names of the images in an OCI archive.
func imageNames(archive string) ([]string, error) {
	file, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for reader := tar.NewReader(file); ; {
		header, err := reader.Next()
		if err != nil {
			return nil, fmt.Errorf("not an OCI archive (no index.json): %w", err)
		}
		if filepath.Clean(header.Name) != "index.json" {
			continue
		}
		var content index
		if err := json.NewDecoder(reader).Decode(&content); err != nil {
			return nil, fmt.Errorf("index.json: %w", err)
		}
		var names []string
		for _, manifest := range content.Manifests {
			if name := manifest.Annotations[nameAnnotation]; name != "" {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("it names no image: its manifest needs the annotation %s", nameAnnotation)
		}
		slices.Sort(names)
		return names, nil
	}
}

// imageConfig is how the containers of an image start.
type imageConfig struct {
	User       string   `json:"User,omitempty"`
	Env        []string `json:"Env,omitempty"`
	Entrypoint []string `json:"Entrypoint"`
}

// writeImage writes an OCI archive with one layer, which is a tar file.
func writeImage(archive, name, layer string, config imageConfig) error {
	content, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer content.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, content)
	if err != nil {
		return err
	}
	layerDigest := "sha256:" + hex.EncodeToString(hash.Sum(nil))

	const media = "application/vnd.oci.image."
	blobs := map[string][]byte{}
	add := func(kind string, value any) descriptor {
		text, _ := json.Marshal(value) // only maps and strings
		sum := sha256.Sum256(text)
		digest := hex.EncodeToString(sum[:])
		blobs["blobs/sha256/"+digest] = text
		return descriptor{MediaType: media + kind, Digest: "sha256:" + digest, Size: int64(len(text))}
	}
	configuration := add("config.v1+json", map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{layerDigest}},
	})
	manifest := add("manifest.v1+json", map[string]any{
		"schemaVersion": 2,
		"mediaType":     media + "manifest.v1+json",
		"config":        configuration,
		"layers":        []descriptor{{MediaType: media + "layer.v1.tar", Digest: layerDigest, Size: size}},
	})
	manifest.Annotations = map[string]string{nameAnnotation: name}
	whole, _ := json.Marshal(index{SchemaVersion: 2, MediaType: media + "index.v1+json", Manifests: []descriptor{manifest}})

	// The index first: who looks for the name need not read the layers.
	entries := []string{"oci-layout", "index.json"}
	for path := range blobs {
		entries = append(entries, path)
	}
	blobs["oci-layout"], blobs["index.json"] = []byte(`{"imageLayoutVersion":"1.0.0"}`), whole

	out, err := os.Create(archive + ".new")
	if err != nil {
		return err
	}
	defer out.Close()
	writer := tar.NewWriter(out)
	for _, path := range entries {
		if err := writeEntry(writer, path, int64(len(blobs[path])), bytes.NewReader(blobs[path])); err != nil {
			return err
		}
	}
	if _, err := content.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := writeEntry(writer, "blobs/sha256/"+layerDigest[len("sha256:"):], size, content); err != nil {
		return err
	}
	if err := errors.Join(writer.Close(), out.Close()); err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}

func writeEntry(writer *tar.Writer, path string, size int64, content io.Reader) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, Size: size}
	if err := writer.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(writer, content)
	return err
}

// writePause packs the program that holds pods' namespaces.
func (c *cluster) writePause() error {
	program, err := os.ReadFile(c.tool("pause"))
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	writer := tar.NewWriter(&layer)
	header := &tar.Header{Typeflag: tar.TypeReg, Name: "pause", Mode: 0o755, Size: int64(len(program))}
	if err := writer.WriteHeader(header); err != nil {
		return err
	}
	if _, err := writer.Write(program); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	path := c.path("pause.layer")
	defer os.Remove(path)
	if err := os.WriteFile(path, layer.Bytes(), 0o644); err != nil {
		return err
	}
	return writeImage(c.path("pause.tar"), pauseImage, path, imageConfig{Entrypoint: []string{"/pause"}})
}
