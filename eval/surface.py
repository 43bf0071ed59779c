"""Surface normals of a depth map, by planes fitted to the points around each pixel.

Legend: H x W pixels; depths in metres, 0 where the sensor saw nothing; camera fx, fy, cx, cy in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from dino_tower.errors import ConfigError

STEEPEST = 5.67  # tan 80 degrees: what falls off faster within a window is an edge, not a surface
JUMP = 0.25  # so is what differs by more of its depth, whatever the camera


def normals_of_depth(depth: np.ndarray, camera: tuple[float, float, float, float], radius: int = 5) -> np.ndarray:
    """[H, W] metres -> [3, H, W] float32 of unit length that face the camera (x right, y down, z < 0); 0 where unknown.

        x = (u - cx) / fx, y = (v - cy) / fy;  a plane n . (x z, y z, z) = 1 has 1 / z = n_x x + n_y y + n_z

    so that a straight line fitted to 1 / z along rows and columns of a window gives n. In a window of 11 pixels a
    sensor's noise averages out. Pixels without depth, and windows with holes, an edge or the border of the picture,
    have no normal. Raises ConfigError for what is no depth map.
    """
    fx, fy, cx, cy = camera
    if depth.ndim != 2 or fx <= 0 or fy <= 0:
        raise ConfigError(f"normals: depth of shape {depth.shape}, focal lengths {fx:g}, {fy:g}; need [H, W] and > 0")
    z = depth.astype(np.float64)
    inverse = np.where(z > 0, 1 / np.where(z > 0, z, 1), 0)
    side = 2 * radius + 1
    ramp = np.arange(-radius, radius + 1, dtype=np.float64)
    slope, flat = ramp / np.square(ramp).sum(), np.full(side, 1 / side)
    n_x = cv2.sepFilter2D(inverse, -1, slope, flat) * fx
    n_y = cv2.sepFilter2D(inverse, -1, flat, slope) * fy
    v, u = np.mgrid[: z.shape[0], : z.shape[1]]
    n_z = cv2.sepFilter2D(inverse, -1, flat, flat) - n_x * (u - cx) / fx - n_y * (v - cy) / fy
    normal = -np.stack([n_x, n_y, n_z])
    length = np.linalg.norm(normal, axis=0)
    known = _smooth(z, side, min(JUMP, STEEPEST * side / max(fx, fy))) & (length > 0)
    return np.where(known, normal / np.where(length > 0, length, 1), 0).astype(np.float32)


def _smooth(z: np.ndarray, side: int, limit: float) -> np.ndarray:
    """Where every pixel of the window is known, inside the picture, and no farther than `limit` of the depth apart."""
    window, around = np.ones((side, side), np.uint8), side // 2
    low, high = cv2.erode(z, window), cv2.dilate(z, window)
    inside = np.zeros(z.shape, bool)
    inside[around : z.shape[0] - around, around : z.shape[1] - around] = True
    return inside & (low > 0) & (high - low <= limit * (high + low) / 2)
