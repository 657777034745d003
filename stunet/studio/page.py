"""The Gradio page: a tab per application, with a component per option of its definition.

Events receive what the browser sent (`preprocess=False`), so that `stunet.studio.requests` reports
what is wrong with it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from stunet.engine.applications import APPLICATIONS, Option, available_applications
from stunet.engine.cascade import Models, short_name
from stunet.engine.request import Request, Result, Sampling
from stunet.engine.sampling import with_model_defaults
from stunet.errors import UserError
from stunet.studio import results
from stunet.studio.jobs import Cancelled, Queue, Report
from stunet.studio.requests import SIDES, parse_request, run_request
from stunet.studio.storage import Storage
from stunet.studio.uploads import (
    EDITOR_SIDE,
    Limits,
    check_upload,
    editor_background,
    uploaded_path,
    write_painted_mask,
)
from stunet.weights.style import DEFAULT_STRENGTH, MAX_STRENGTH

PAINTED, FROM_FILE = "Painted here", "From a file"
FILE_KINDS = ("image", "video", "mask")
# System fonts: the page loads nothing from other servers.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.status progress { width: 100%; height: 0.75rem; appearance: none; border: 0; }
.status progress, .status progress::-webkit-progress-bar {
  background: var(--border-color-primary); border-radius: 4px;
}
.status progress::-webkit-progress-value { background: var(--color-accent); border-radius: 4px; }
.status progress::-moz-progress-bar { background: var(--color-accent); border-radius: 4px; }
.status img { margin-top: 0.5rem; image-rendering: pixelated; border-radius: 4px; }
.status [role=alert] { border-left: 4px solid #b91c1c; padding: 0.5rem 0.75rem; font-weight: 600; }
/* Trimming would load FFmpeg for browsers from another server. */
[title="Trim video to selection"], [title="Reset video to initial value"] { display: none; }
/* Aligns inputs below labels of different heights. */
.numbers label { display: flex; flex-direction: column; height: 100%; }
.numbers input { margin-top: auto; }
.status ul { margin: 0.25rem 0 0 1.25rem; list-style: disc; }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Studio:
    """State that all tabs share.

    Attributes:
      models: Models of all jobs, with a base model.
      jobs: Queue of all users' jobs.
      storage: Gradio's folder of uploads; results are written to a subfolder.
      limits: Limits of uploads.
    """

    models: Models
    jobs: Queue
    storage: Storage
    limits: Limits

    @property
    def folder(self) -> Path:
        """Folder of uploads."""
        return self.storage.folder

    @property
    def results(self) -> Path:
        """Folder of result files."""
        return self.storage.results


def build(studio: Studio) -> gr.Blocks:
    """Returns the page, ready to launch."""

    def cancel_session(request: gr.Request) -> None:
        studio.jobs.cancel(request.session_hash)

    base = studio.models.base
    output = f"{base.resolution}x{base.resolution} pixels"
    if base.num_frames > 1:
        output = f"{base.num_frames} frames of {output} at {base.fps:g} frames per second"
    with gr.Blocks(
        title="stunet studio", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.Markdown(f"# stunet studio\n**{short_name(studio.models.base_name)}**: {output}")
        for application in available_applications(studio.models.chain):
            with gr.Tab(application.capitalize(), id=application):
                gr.Markdown(APPLICATIONS[application].summary)
                _Tab(studio, application)
        gr.Markdown(f"Upload limits: {studio.limits}. One job runs at a time.")
        page.unload(cancel_session)
    return page


class _Tab:
    """One application: inputs on the left, the result on the right (below, on narrow screens).

    Attributes:
      fields: Component by field of `Request` or `Sampling`. A mask has two more, `region` (the
        radio buttons) and `painting` (the editor); margins have one per side.
    """

    def __init__(self, studio: Studio, application: str):
        self.studio, self.application = studio, application
        self.definition = APPLICATIONS[application]
        self.options = {o.field: o for o in self.definition.options if not o.advanced}
        if studio.models.base.num_frames == 1:
            self.options.pop("num_frames", None)
        self.mask = self._option_of("mask")
        self.margins = self._option_of("margins")
        self.fields: dict[str, gr.components.Component] = {}
        with gr.Row():
            with gr.Column(min_width=300):
                self._add_inputs()
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", min_width=100)
                    self.cancel = gr.Button("Cancel", interactive=False, min_width=100)
            with gr.Column(min_width=300):
                # Separate from the status: a check may end after the job that followed it.
                self.upload_error = gr.HTML(
                    elem_classes="status", elem_id=f"{application}-upload-error"
                )
                self.status = gr.HTML(elem_classes="status", elem_id=f"{application}-status")
                with gr.Column(visible=False) as self.result:
                    self.video = gr.Video(
                        label="Result",
                        elem_id=f"{application}-result",
                        interactive=False,
                        autoplay=True,
                        loop=True,
                        height=400,
                        buttons=[],
                    )
                    self.download = gr.DownloadButton("Download the MP4")
                    self.slice = gr.Image(
                        label="X-T slice: the middle row of pixels over time (downwards)",
                        interactive=False,
                        buttons=["fullscreen"],
                        alt_text="X-T slice",
                    )
                    self.settings = gr.JSON(
                        label="Settings (also in the MP4's comment)", open=True, buttons=["copy"]
                    )
        self._add_events(start)

    def _option_of(self, kind: str) -> Option | None:
        return next((o for o in self.options.values() if o.kind == kind), None)

    # --- components

    def _add_inputs(self) -> None:
        fields, models = self.fields, self.studio.models
        fields["prompt"] = gr.Textbox(
            label="Prompt", placeholder="Describe the video", elem_classes="prompt"
        )
        for option in self.options.values():
            if option.kind != "integer":
                self._add_option(option)
        if self.definition.model != "super_resolution":
            if models.style is not None:
                fields["style_strength"] = gr.Slider(
                    0,
                    MAX_STRENGTH,
                    0,
                    step=0.05,
                    label="Style strength",
                    info=f"Style of {short_name(models.style_name)}; 0 disables it, "
                    f"{DEFAULT_STRENGTH} is typical",
                )
            if models.upscalers:
                fields["enlarge"] = gr.Checkbox(True, label=f"Enlarge {models.factor} times")
        with gr.Row(elem_classes="numbers"):
            fields["seed"] = gr.Number(
                0,
                label="Seed",
                info="The same seed gives the same video",
                precision=0,
                minimum=0,
                min_width=100,
            )
            for option in self.options.values():
                if option.kind == "integer":
                    self._add_option(option)
        enlarges_only = self.definition.model == "super_resolution"
        first = models.upscalers[0] if enlarges_only else models.base
        defaults = with_model_defaults(Sampling(), first)
        fields["steps"] = gr.Slider(
            1,
            max(100, defaults.steps),
            defaults.steps,
            step=1,
            label="Steps",
            info="The model is distilled to this number" if first.sampling.only else None,
            interactive=not first.sampling.only,
        )
        scale = defaults.guidance_scale
        low, high = first.sampling.guidance_scales or (min(1, scale), max(12, scale))
        fields["guidance_scale"] = gr.Slider(
            low,
            high,
            scale,
            step=0.5,
            label="Guidance scale",
            info="Higher values follow the prompt more closely",
        )
        if "enlarge" in fields:
            with gr.Row(elem_classes="numbers"):
                fields["upscale_steps"] = gr.Number(
                    0,
                    label="Upscaling steps (0 is the model's)",
                    precision=0,
                    minimum=0,
                    min_width=100,
                )
                fields["upscale_guidance_scale"] = gr.Number(
                    0,
                    label="Upscaling guidance scale (0 is the model's)",
                    minimum=0,
                    min_width=100,
                )
        fields["negative_prompt"] = gr.Textbox(
            label="Negative prompt", info="Text that guidance leads away from", lines=1
        )
        for name, component in fields.items():
            component.elem_id = f"{self.application}-{name}"

    def _add_option(self, option: Option) -> None:
        """Adds the component of an option; margins beside a mask belong to the mask's."""
        if option.kind == "mask":
            self._add_mask(option)
        elif option.kind == "margins":
            if self.mask is None:
                self._add_margins(option)
        else:
            self.fields[option.field] = self._component(option)

    def _component(self, option: Option) -> gr.components.Component:
        label, info = option.label, _sentence(option.help)
        upload = {"label": label, "sources": ["upload"], "height": 240, "buttons": []}
        if option.kind == "image":
            return gr.Image(type="filepath", **upload)
        if option.kind == "video":
            return gr.Video(**upload)
        if option.kind == "switch":
            return gr.Checkbox(bool(option.default), label=label, info=info)
        whole = option.kind == "integer"
        low, high = option.minimum, option.maximum
        if None not in (low, high, option.default):
            step = 1 if whole else (high - low) / 20
            return gr.Slider(low, high, option.default, step=step, label=label, info=info)
        value = option.default
        if value is None:  # Gradio displays an empty number as 0
            value = 0
            model_default = getattr(self.studio.models.base, option.field, "the default")
            label, low = f"{label} (0 is {model_default})", 0
        return gr.Number(
            value,
            label=label,
            info=info,
            precision=0 if whole else None,
            minimum=low,
            min_width=100,
        )

    def _add_mask(self, option: Option) -> None:
        """Adds the choice between a painting editor, a mask file and, if there are, margins."""
        margins = self.margins
        choices = [PAINTED, FROM_FILE, *([] if margins is None else [margins.label])]
        self.fields["region"] = region = gr.Radio(choices, value=PAINTED, label=option.label)
        self.fields["painting"] = painting = gr.ImageEditor(
            label="Mask",
            type="pil",
            sources=[],
            transforms=[],
            layers=False,
            brush=gr.Brush(default_size=40, colors=["rgba(255, 0, 255, 0.6)"], color_mode="fixed"),
            buttons=[],
            canvas_size=(EDITOR_SIDE, EDITOR_SIDE),
            height=460,
            placeholder=f"Upload the {self._picture().label.lower()} first",
        )
        self.fields[option.field] = file = gr.File(label=_sentence(option.help), visible=False)
        components = {PAINTED: painting, FROM_FILE: file}
        if margins is not None:
            with gr.Column(visible=False) as components[margins.label]:
                self._add_margins(margins)
        region.change(
            lambda choice: [gr.update(visible=name == choice) for name in components],
            region,
            list(components.values()),
            queue=False,
            api_visibility="private",
        )

    def _add_margins(self, option: Option) -> None:
        gr.Markdown(_sentence(option.help))
        with gr.Row():
            for side in SIDES:
                self.fields[side] = gr.Number(
                    0, label=f"Pixels {side}", precision=0, minimum=0, min_width=100
                )

    def _picture(self) -> Option:
        """Returns the option under a painted mask: the first image or video."""
        return next(o for o in self.options.values() if o.kind in ("image", "video"))

    # --- events

    def _add_events(self, start: gr.Button) -> None:
        private = {"api_visibility": "private", "show_progress": "hidden"}
        raw = {**private, "preprocess": False, "concurrency_limit": None}
        outputs = [
            self.status,
            self.cancel,
            self.result,
            self.video,
            self.download,
            self.slice,
            self.settings,
        ]
        gr.on(
            [start.click, self.fields["prompt"].submit],
            self._run,
            list(self.fields.values()),
            [*outputs, self.upload_error],
            **raw,
        )
        self.cancel.click(self._cancel, queue=False, **private)
        for option in self.options.values():
            if option.kind in FILE_KINDS:
                under_painting = self.mask is not None and option == self._picture()
                editor = self.fields["painting"] if under_painting else None
                self._add_upload_check(self.fields[option.field], editor, raw)

    def _add_upload_check(
        self,
        component: gr.components.Component,
        editor: gr.ImageEditor | None,
        event_settings: dict[str, Any],
    ) -> None:
        """Checks a file as soon as it is uploaded, and shows it in the mask editor if there is one.

        A refused file is removed from the page.
        """

        def check(value: dict[str, Any]) -> Iterator[dict]:
            try:
                path = uploaded_path(value, self.studio.folder)
                check_upload(path, self.studio.limits)
                background = None if editor is None else editor_background(path)
            except UserError as error:
                emptied = {c: None for c in (component, editor) if c is not None}
                yield {**emptied, self.upload_error: results.error_html(str(error))}
                raise gr.Error(str(error), print_exception=False) from None
            yield {self.upload_error: "", **({} if editor is None else {editor: background})}

        outputs = [component, self.upload_error, *([] if editor is None else [editor])]
        component.upload(check, component, outputs, **event_settings)

        def clear() -> dict:
            return {self.upload_error: "", **({} if editor is None else {editor: None})}

        component.clear(clear, None, outputs[1:], queue=False, **event_settings)

    def _run(self, session: gr.Request, *values: Any) -> Iterator[dict]:
        fps = self.studio.models.base.fps or 1.0
        try:
            self.studio.storage.check_room()
            request = self._parse(dict(zip(self.fields, values, strict=True)))

            def work(report: Report) -> tuple[Result, results.ResultFiles]:
                result = run_request(self.studio.models, request, report)
                return result, results.write_result(result, self.studio.results)

            job = self.studio.jobs.add(work, session.session_hash, self.application)
            try:
                for status in job.updates():
                    yield {
                        self.status: results.status_html(status, fps),
                        self.cancel: gr.update(interactive=True),
                        self.result: gr.update(visible=False),
                        self.upload_error: "",
                    }
            finally:
                job.cancel()  # has an effect only if the user has left the page before the end
            result, files = job.result()
        except Cancelled:
            yield self._end('<div role="status">cancelled</div>')
        except UserError as error:
            yield self._end(results.error_html(str(error)))
            raise gr.Error(str(error), print_exception=False) from None
        else:
            yield {
                self.status: results.warnings_html(result.warnings),
                self.cancel: gr.update(interactive=False),
                self.result: gr.update(visible=True),
                self.video: str(files.video),
                self.download: str(files.video),
                self.slice: gr.update(
                    value=files.xt_slice and str(files.xt_slice),
                    visible=files.xt_slice is not None,
                ),
                self.settings: result.settings,
            }

    def _end(self, status: str) -> dict:
        return {
            self.status: status,
            self.cancel: gr.update(interactive=False),
            self.upload_error: "",
        }

    def _cancel(self, session: gr.Request) -> None:
        self.studio.jobs.cancel(session.session_hash, self.application)

    def _parse(self, values: dict[str, Any]) -> Request:
        """Builds the request from the components' values.

        Raises:
          UserError: A value is missing or invalid.
        """
        folder, limits = self.studio.folder, self.studio.limits
        if self.margins is not None:
            values[self.margins.field] = [values.pop(side) for side in SIDES]
        if self.mask is None:
            return parse_request(self.application, values, folder, limits)
        # Only the selected one of painting, file and margins enters the request.
        region, painting = values.pop("region"), values.pop("painting")
        if region != FROM_FILE:
            del values[self.mask.field]
        if self.margins is not None and region != self.margins.label:
            del values[self.margins.field]
        request = parse_request(self.application, values, folder, limits)
        if region != PAINTED:
            return request
        mask = self._painted_mask(painting, getattr(request, self._picture().field))
        return dataclasses.replace(request, **{self.mask.field: mask})

    def _painted_mask(self, painting: Mapping[str, Any] | None, picture: Path) -> Path:
        """Writes what is painted over a picture as a mask file."""
        editor = self.fields["painting"]
        data = editor.data_model.model_validate(painting or {})
        for image in (data.background, data.composite, *(data.layers or [])):
            if image is not None:
                uploaded_path(image.model_dump(), self.studio.folder)
        mask = results.new_folder(self.studio.results) / "painted.png"
        write_painted_mask(editor.preprocess(data)["layers"], picture, mask)
        return mask


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
